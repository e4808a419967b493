"""Decoders of every supported family: llama.cpp and mlx-lm compute transformers' logits, with the adapter too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
)

from qra_bo.export.gguf_file import Source
from qra_bo.export.gguf_layout import layout_of
from qra_bo.export.gguf_tokenizer import vocabulary_of
from qra_bo.export.llamacpp import LlamaCpp
from qra_bo.export.mlx import mlx_config, mlx_logits, write_model
from qra_bo.export.weights import LinearWeights, LoraPair, RunWeights, _others
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.quantization.base import pack_for
from qra_bo.memory.formats import parse_format
from qra_bo.utils.errors import ConfigError

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 7, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 512, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
LLAMA3 = {**ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {**ROPE, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
LINEAR = {**ROPE, "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
LONG = {**ROPE, "rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [1.0 + 0.5 * i for i in range(8)]}
GEMMA = {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
DECODERS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, head_dim=16, rope_parameters={**ROPE, "rope_theta": 5e5}),
    "llama, tied, biases": LlamaConfig(**SIZES, head_dim=32, tie_word_embeddings=True, attention_bias=True,
                                       mlp_bias=True),
    "llama 3.1": LlamaConfig(**SIZES, rope_parameters=LLAMA3), "llama, linear": LlamaConfig(**SIZES,
                                                                                           rope_parameters=LINEAR),
    "mistral": MistralConfig(**SIZES, head_dim=32, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True, rope_parameters={**ROPE, "rope_theta": 1e6}),
    "qwen2, untied": Qwen2Config(**SIZES, tie_word_embeddings=False),
    "qwen2, yarn": Qwen2Config(**SIZES, rope_parameters=YARN), "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "gemma3": Gemma3TextConfig(**GEMMA),
    "gemma3, linear": Gemma3TextConfig(**GEMMA, rope_parameters={"full_attention": LINEAR, "sliding_attention": ROPE}),
    "smollm3": SmolLM3Config(**SIZES, tie_word_embeddings=True),
    "seed_oss": SeedOssConfig(**SIZES, head_dim=32), "olmo2": Olmo2Config(**SIZES),
    "phi3": Phi3Config(**SIZES), "phi3, partial": Phi3Config(**SIZES, rope_parameters={**ROPE,
                                                                                      "partial_rotary_factor": 0.5}),
    "phi3, long": Phi3Config(**{**SIZES, "max_position_embeddings": 2048}, original_max_position_embeddings=256,
                             rope_parameters=LONG)}
MIXED = ("sym4-g64", "sym8-g32", "fp16", "sym2-g64", "int3-g64", "sym5-g32", "sym6-g64", "sym3-g32", "int2-g32")
IDS = torch.randint(0, 256, (1, 300), generator=torch.Generator().manual_seed(2))  # beyond Phi's short context


class TableGELU(torch.nn.Module):
    """GELU as llama.cpp's CPU code has it: a table of fp16 values at fp16 arguments."""

    def __init__(self, gelu: Any) -> None:
        super().__init__()
        self.gelu = gelu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.gelu(x.half().float()).half().float()
        return found


def decoder(config: Any) -> tuple[Any, RunWeights]:
    """A random decoder with values that fp16 holds and linears of mixed formats, and its tensors with adapters."""
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config).eval().float()
    for name, parameter in model.named_parameters():
        middle = 1.0 if "norm" in name and config.model_type != "gemma3_text" else 0.0
        spread = 0.3 if parameter.ndim == 1 else 0.15
        parameter.data = (middle + spread * torch.randn(parameter.shape, generator=draw)).half().float()
    linears = {}
    inside = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers." in name]
    for i, (name, module) in enumerate(inside):
        fmt, rank, (rows, columns) = parse_format(MIXED[i % len(MIXED)]), i % 5, module.weight.shape
        lora = LoraPair(0.1 * torch.randn(rank, columns, generator=draw), 0.1 * torch.randn(rows, rank, generator=draw),
                        1.5) if rank else None
        state = pack_for(module.weight.detach(), fmt, torch.float32, torch.device("cpu"))
        linears[name] = LinearWeights(name, fmt, (rows, columns), state,
                                      None if module.bias is None else module.bias.data, lora)
        module.weight.data = linears[name].dense(torch.float32)
    return model, RunWeights(linears, _others(model, linears), model.config, model.generation_config, byte_tokenizer())


def logits(model: Any, weights: RunWeights, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of transformers without the adapter and, merged into the model, with it."""
    with torch.no_grad():
        base = model(ids, use_cache=False).logits[0]
        for name, linear in weights.linears.items():
            model.get_submodule(name).weight.data = linear.merged(torch.float32)
        return base, model(ids, use_cache=False).logits[0]


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "qwen2, yarn"])
def test_llama_cpp_computes_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    model, weights = decoder(DECODERS[name])
    source = Source(weights, layout_of(model.config), vocabulary_of(weights.tokenizer, 320), name)
    source.write_model(tmp_path / "base.gguf", dense=True)
    source.write_adapter(tmp_path / "adapter.gguf")
    for layer in model.model.layers if name.startswith("gemma3") else ():
        layer.mlp.act_fn = TableGELU(layer.mlp.act_fn)
    base, adapted = logits(model, weights, IDS)
    assert (adapted - base).abs().max() > 0.5
    for lora, expected in ((None, base), (tmp_path / "adapter.gguf", adapted)):
        with LlamaCpp(tmp_path / "base.gguf", lora, length=300, exact=True) as loaded:
            apart = np.abs(loaded.logits(IDS[0].tolist()) - expected.numpy()).max()
            # an argument beside the middle of two of the table's may fall on either
            assert apart <= (3e-3 if name.startswith("gemma") else 1e-3)


@pytest.mark.filterwarnings("ignore:.*RoPE scaling factor.*")
@pytest.mark.parametrize("name", DECODERS)
def test_mlx_computes_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    model, weights = decoder(DECODERS[name])
    write_model(weights, tmp_path)
    for adapted, expected in zip((False, True), logits(model, weights, IDS[:, :40]), strict=True):
        found = mlx_logits(tmp_path, IDS[0, :40], adapted=adapted, fp32=True)
        assert (found - expected).abs().max() <= 1e-3


def gguf_layout(config: Any) -> None:
    layout_of(config)


def mlx(config: Any) -> None:
    mlx_config(config, {})


@pytest.mark.parametrize(("describe", "config", "reason"), [
    (gguf_layout, MistralConfig(**SIZES, sliding_window=128), "sliding window over all layers"),
    (gguf_layout, Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=64), "sliding window over all layers"),
    (gguf_layout, Gemma3TextConfig(**SIZES, layer_types=["full_attention"] * 7), "order of layers"),
    (gguf_layout, Gemma3TextConfig(**{**GEMMA, "query_pre_attn_scalar": 256}), "scale of the attention"),
    (gguf_layout, Gemma3TextConfig(**SIZES, final_logit_softcapping=30.0), "capped"),
    (gguf_layout, LlamaConfig(**SIZES, rope_parameters={**LINEAR, "rope_type": "dynamic"}), "scaling of the rotary"),
    (gguf_layout, LlamaConfig(**SIZES, hidden_act="gelu"), "activation"),
    (gguf_layout, Qwen3MoeConfig(**SIZES), "norm_topk_prob=False"),
    (gguf_layout, SmolLM3Config(**SIZES, no_rope_layer_interval=2), "layers without a rotary embedding"),
    (gguf_layout, OlmoeConfig(**SIZES, clip_qkv=8.0), "clipped queries.*; tied embeddings or grouped heads"),
    (mlx, MistralConfig(**SIZES, sliding_window=7), "no sliding window, here of 7 tokens, for models of 'mistral'"),
    (mlx, LlamaConfig(**SIZES, rope_parameters={**LINEAR, "rope_type": "dynamic"}), "this model has 'dynamic'"),
    (mlx, Gemma3TextConfig(**GEMMA, layer_types=["full_attention"] * 2 + ["sliding_attention"] * 5),
     r"these are the layers \[0, 1\]"),
    (mlx, Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention"] * 7), r"these are the layers \[\]"),
    (mlx, GPTNeoXConfig(), r"covers models of llama, .*; this one is of 'gpt_neox'")])
def test_decoders_that_are_computed_otherwise_are_refused(describe: Callable[[Any], None], config: Any,
                                                          reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        describe(config)
