"""Decoders of every supported family as GGUF: llama.cpp's logits beside those of transformers, with an adapter too."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from qra_bo.export.gguf import source_of
from qra_bo.export.gguf_file import Source
from qra_bo.export.gguf_layout import ARCHITECTURES, layout_of
from qra_bo.export.gguf_tokenizer import vocabulary_of
from qra_bo.export.llamacpp import LlamaCpp
from qra_bo.export.weights import LinearWeights, LoraPair, RunWeights, _others
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.memory.formats import parse_format
from qra_bo.memory.serving import CONSUMERS
from qra_bo.utils.errors import ConfigError

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 512, "pad_token_id": None,
         "bos_token_id": None, "eos_token_id": None}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 10000.0}
FULL, LOCAL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e4}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [1.0 + 0.5 * i for i in range(8)]}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=False),
    "llama, biases": LlamaConfig(**SIZES, head_dim=32, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama 3.1": LlamaConfig(**SIZES, head_dim=16, rope_parameters=LLAMA3),
    "llama, linear": LlamaConfig(**SIZES, head_dim=16,
                                 rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}),
    "mistral": MistralConfig(**SIZES, head_dim=16, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2, untied": Qwen2Config(**SIZES, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=16),
    "gemma3, linear": Gemma3TextConfig(**SIZES, head_dim=16, query_pre_attn_scalar=16, sliding_window=16,
                                       rope_parameters={"full_attention": FULL, "sliding_attention": LOCAL}),
    "phi3": Phi3Config(**SIZES),
    "phi3, partial": Phi3Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                                          "partial_rotary_factor": 0.5}),
    "phi3, long": Phi3Config(**{**SIZES, "max_position_embeddings": 2048}, original_max_position_embeddings=256,
                             rope_parameters=LONG),
}


class TableGELU(torch.nn.Module):
    """GELU as llama.cpp's CPU code has it: a table of fp16 values at fp16 arguments."""

    def __init__(self, gelu: Any) -> None:
        super().__init__()
        self.gelu = gelu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.gelu(x.half().float()).half().float()
        return found


def random_model(config: Any) -> Any:
    """A decoder whose norms and biases are random too, with values that fp16 holds."""
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config).eval().float()
    for name, parameter in model.named_parameters():
        middle = 1.0 if "norm" in name and config.model_type != "gemma3_text" else 0.0
        spread = 0.3 if parameter.ndim == 1 else 0.15
        parameter.data = (middle + spread * torch.randn(parameter.shape, generator=draw)).half().float()
    if config.model_type == "gemma3_text":
        for layer in model.model.layers:
            layer.mlp.act_fn = TableGELU(layer.mlp.act_fn)
    return model


def weights_with_adapter(model: Any) -> RunWeights:
    draw, fmt, linears = torch.Generator().manual_seed(1), parse_format("fp16"), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            rows, columns = module.weight.shape
            lora = LoraPair(0.1 * torch.randn(3, columns, generator=draw),
                            0.1 * torch.randn(rows, 3, generator=draw), 2.0)
            linears[name] = LinearWeights(name, fmt, (rows, columns), {"codes": module.weight.data.half()},
                                          None if module.bias is None else module.bias.data, lora)
    return RunWeights(None, linears, _others(model, linears), model.config,  # type: ignore[arg-type]
                      model.generation_config, byte_tokenizer())


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_computes_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    model = random_model(CONFIGS[name])
    weights = weights_with_adapter(model)
    source = Source(weights, layout_of(model.config), vocabulary_of(weights.tokenizer, 320), name)
    source.write_model(tmp_path / "base.gguf", dense=True)
    source.write_adapter(tmp_path / "adapter.gguf")
    ids = torch.randint(0, 256, (1, 300), generator=torch.Generator().manual_seed(2))  # beyond Phi's short context
    with torch.no_grad():
        wanted = model(ids).logits[0].numpy()
        for path, linear in weights.linears.items():
            assert linear.lora is not None
            model.get_submodule(path).weight.data += linear.lora.update
        adapted = model(ids).logits[0].numpy()
    assert np.abs(adapted - wanted).max() > 1
    for lora, expected in ((None, wanted), (tmp_path / "adapter.gguf", adapted)):
        with LlamaCpp(tmp_path / "base.gguf", lora, length=300, exact=True) as loaded:
            apart = np.abs(loaded.logits(ids[0].tolist()) - expected).max()
            # an argument beside the middle of two of the table's may fall on either
            assert apart <= (3e-3 if name.startswith("gemma") else 1e-3)


@pytest.mark.parametrize(("config", "reason"), [
    (MistralConfig(**SIZES, sliding_window=128), "sliding window over all layers"),
    (Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=64), "sliding window over all layers"),
    (Gemma3TextConfig(**SIZES, layer_types=["full_attention"] * 7), "order of layers"),
    (Gemma3TextConfig(**SIZES, head_dim=16, query_pre_attn_scalar=256), "scale of the attention"),
    (Gemma3TextConfig(**SIZES, final_logit_softcapping=30.0), "capped"),
    (LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
     "scaling of the rotary"),
    (LlamaConfig(**SIZES, hidden_act="gelu"), "activation")])
def test_settings_that_llama_cpp_computes_otherwise_are_refused(config: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"llama.cpp computes this {config.model_type} model.*{reason}"):
        layout_of(config)


def test_sampling_is_written_with_releases_of_gguf_without_methods_for_it(tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in dir(GGUFWriter) if name.startswith("add_sampling_")]:
        monkeypatch.delattr(GGUFWriter, name)  # they came with 0.18
    wanted = {"temp": 0.5, "top_k": 20, "top_p": 0.25, "min_p": 0.125, "penalty_repeat": 1.5}
    settings = GenerationConfig(do_sample=True, temperature=0.5, top_k=20, top_p=0.25, min_p=0.125,
                                repetition_penalty=1.5)
    weights = replace(weights_with_adapter(random_model(CONFIGS["llama"])), generation_config=settings)
    source = Source(weights, layout_of(weights.config), vocabulary_of(byte_tokenizer(), 320), "llama")
    source.write_model(tmp_path / "base.gguf")
    fields = GGUFReader(tmp_path / "base.gguf").fields
    assert {key.rpartition(".")[2]: field.contents() for key, field in fields.items()
            if key.startswith("general.sampling.")} == wanted


def test_other_families_are_refused_with_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"gpt_neox.embed_in.weight": torch.zeros(320, 64)}  # a name of its own, which must not be a KeyError
    weights = RunWeights(None, {}, others, GPTNeoXConfig(), None, byte_tokenizer())  # type: ignore[arg-type]
    monkeypatch.setattr("qra_bo.export.gguf.weights_of", lambda run: weights)
    with pytest.raises(ConfigError, match=r"families llama, mistral, qwen2.*'gpt_neox'"):
        source_of(None)  # type: ignore[arg-type]


def test_families_of_serve_are_those_of_the_export() -> None:
    assert CONSUMERS["llamacpp"].families == tuple(ARCHITECTURES)
