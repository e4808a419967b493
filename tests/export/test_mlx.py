"""Runs as mlx-lm loads them: the run's own logits in fp32, at every width, group and architecture; or a refusal."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from qra_bo.export.comparison import Reference
from qra_bo.export.mlx import ADAPTER, FOLDER, linear_tensors, mlx_config, mlx_logits, write_model
from qra_bo.export.registry import TARGETS
from qra_bo.export.run import FinishedRun
from qra_bo.export.weights import LinearWeights, LoraPair, RunWeights, weights_of
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.manifest import PROBE, Manifest
from qra_bo.finetune.quantization.base import pack_for
from qra_bo.memory.formats import FORMATS, parse_format
from qra_bo.memory.serving import CONSUMERS, MLX_BITS
from qra_bo.utils.errors import ConfigError
from tests.export.finished import exported, finish

RTN = "quantizer.rounding=rtn"
EXACT = 2e-5
"""Largest difference of logits, of another order of fp32 sums."""
SIZES: dict[str, Any] = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
                         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
YARN = {**ROPE, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
LONG = {**ROPE, "rope_type": "longrope", "short_factor": [1.1] * 8, "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 64}
DECODERS = {
    "llama": LlamaConfig(**SIZES, rope_parameters={**ROPE, "rope_theta": 500_000.0}),
    "llama, tied, with biases": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama 3.1": LlamaConfig(**SIZES, rope_parameters={
        **ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}),
    "llama, linear": LlamaConfig(**SIZES, rope_parameters={**ROPE, "rope_type": "linear", "factor": 4.0}),
    "mistral": MistralConfig(**SIZES, sliding_window=None, head_dim=32),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True, rope_parameters={**ROPE, "rope_theta": 1e6}),
    "qwen2, yarn": Qwen2Config(**SIZES, rope_parameters=YARN),
    "qwen3": Qwen3Config(**SIZES, head_dim=32, rope_parameters={**ROPE, "rope_theta": 1e6}),
    "gemma3": Gemma3TextConfig(
        **SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=6, bos_token_id=2,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_parameters={
            "sliding_attention": ROPE, "full_attention": {**ROPE, "rope_theta": 1e6, "rope_type": "linear",
                                                          "factor": 8.0}}),
    "phi3": Phi3Config(**SIZES, pad_token_id=0, eos_token_id=1, rope_parameters={**ROPE, "partial_rotary_factor": 0.5}),
    "phi3, longrope": Phi3Config(**SIZES, pad_token_id=0, eos_token_id=1, rope_parameters=LONG,
                                 original_max_position_embeddings=64)}
MIXED = ("sym4-g64", "sym8-g32", "fp16", "sym2-g64", "int3-g64", "sym5-g32", "sym6-g64", "sym3-g32", "int2-g32")


def linear_of(weight: Tensor, fmt: str, bias: Tensor | None = None, lora: LoraPair | None = None) -> LinearWeights:
    state = pack_for(weight, parse_format(fmt), torch.float32, torch.device("cpu"))
    return LinearWeights("layer", parse_format(fmt), (weight.shape[0], weight.shape[1]), state, bias, lora)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.sampled_from([n for n, f in FORMATS.items() if f.backend in ("integer", "hqq") and f.bits in MLX_BITS]),
       st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**31))
def test_mlx_reads_the_same_weights(fmt: str, rows: int, groups: int, seed: int) -> None:
    linear = linear_of(normal(8 * rows, 128 * groups, seed=seed), fmt)
    kind, own = linear.format, linear.dense(torch.float32).numpy()
    parts = [mx.array(linear_tensors(linear)[f"layer.{part}"].numpy()) for part in ("weight", "scales", "biases")]
    found = np.array(mx.dequantize(parts[0], *(part.astype(mx.float32) for part in parts[1:]),
                                   group_size=kind.block, bits=kind.bits))
    if CONSUMERS["mlx"].loads(kind):
        assert (found == own).all()
    else:  # a rounding of the scale (times the code) and of the bias
        allowed = 2**-11 * (2**kind.bits + np.abs(parts[2] / parts[1]).max().item()) * np.abs(parts[1]).max().item()
        assert np.abs(found - own).max() <= allowed


def decoder(config: Any) -> tuple[nn.Module, RunWeights]:
    """A random decoder with values of fp16, its linears of mixed formats and ranks merged in, and its tensors."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_((parameter + 0.05 * normal(*parameter.shape, seed=i)).half())
    linears: dict[str, LinearWeights] = {}
    inside = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and "layers." in name]
    for i, (name, module) in enumerate(inside):
        rank, (rows, columns) = i % 5, module.weight.shape
        down, up = 0.1 * normal(rank, columns, seed=i), 0.1 * normal(rows, rank, seed=i + 1)
        lora = LoraPair(down, up, 1.5) if rank else None
        packed = linear_of(module.weight.detach(), MIXED[i % len(MIXED)], module.bias, lora)
        linears[name] = LinearWeights(name, packed.format, packed.shape, packed.state, packed.bias, lora)
        module.weight.data = linears[name].merged(torch.float32)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    others = {name: tensor for name, tensor in model.state_dict().items()
              if name.rpartition(".")[0] not in linears and name not in tied}
    manifest = Manifest({}, "float32", "cpu", {}, "", "", None, {})
    return model, RunWeights(manifest, linears, others, model.config, model.generation_config, byte_tokenizer())


@pytest.mark.filterwarnings("ignore:.*RoPE scaling factor.*")
@pytest.mark.parametrize("kind", DECODERS)
def test_every_architecture_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    model, weights = decoder(DECODERS[kind])
    assert write_model(weights, tmp_path)
    ids = torch.arange(40) * 7 % 97
    with torch.no_grad():
        own = model(input_ids=ids[None], use_cache=False).logits[0]
    found = mlx_logits(tmp_path, ids, adapted=True, fp32=True)
    assert (found - own).abs().max() <= EXACT
    assert (mlx_logits(tmp_path, ids, adapted=False, fp32=True) - own).abs().max() > 1e-2  # the adapter counts


@pytest.mark.parametrize(("config", "said"), [
    (MistralConfig(**SIZES, sliding_window=7), "no sliding window, here of 7 tokens, for models of 'mistral'"),
    (LlamaConfig(**SIZES, rope_parameters={**ROPE, "rope_type": "dynamic", "factor": 2.0}), "this model has 'dynamic'"),
    (Gemma3TextConfig(**SIZES, sliding_window=6, bos_token_id=2, layer_types=[
        "full_attention", "full_attention", "sliding_attention"]), r"these are the layers \[0, 1\]"),
    (Gemma3TextConfig(**SIZES, sliding_window=6, bos_token_id=2, layer_types=["sliding_attention"] * 3),
     r"these are the layers \[\]")])
def test_decoders_that_mlx_computes_otherwise_are_refused(config: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mlx_config(config, {})


def test_other_families_are_refused() -> None:
    from transformers import GPTNeoXConfig
    with pytest.raises(ConfigError, match=r"covers models of llama, .*; this one is of 'gpt_neox'"):
        mlx_config(GPTNeoXConfig(), {})


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = finish(tmp_path_factory.mktemp("mlx") / "run", ("sym2-g64", "sym3-g32", "sym8-g64", "fp16"), (1, 4, 0, 3),
                    RTN)
    exported(folder, ["mlx"])
    return FinishedRun.read(folder)


def test_check_finds_a_finished_run_near(run: FinishedRun) -> None:
    loader = TARGETS["mlx"].loader
    assert loader is not None
    fp32, served, base = loader.rows("mlx", run, Reference(run, load_file(run.folder / PROBE)["input_ids"][0]))
    assert fp32.largest is not None
    assert fp32.largest <= 1e-3  # the random base is in fp32, and MLX's file in fp16
    assert served.kl is not None
    assert served.kl <= 2e-5  # products in fp16 are rounded as MLX's release and the CPU do it
    assert base.largest is not None
    assert base.largest <= 1e-3


def test_files_state_each_modules_width_and_the_commands(run: FinishedRun) -> None:
    folder = run.folder / FOLDER
    config = json.loads((folder / "config.json").read_text())
    quantization = config["quantization"]
    for name, record in run.manifest.modules.items():
        fmt = record.format
        expected = None if fmt.bits == 16 else {"group_size": fmt.block, "bits": fmt.bits}
        assert quantization.get(name) == expected
    assert config["rope_theta"] == 10_000.0
    assert "quantization_config" not in config
    adapter = json.loads((folder / ADAPTER / "adapter_config.json").read_text())
    adapted = [name for name, record in run.manifest.modules.items() if record.rank]
    assert adapter["lora_parameters"] == {"rank": 4, "scale": 1.0, "dropout": 0.0, "keys": adapted}
    text = (folder / "README.md").read_text()
    assert "mlx_lm.server --model . --adapter-path adapter" in text
    assert "to the last bit" in text
    assert (folder / "tokenizer.json").is_file()


def test_packed_bytes_are_those_that_serving_predicts(run: FinishedRun) -> None:
    from qra_bo.memory.serving import CONSUMERS
    tensors = load_file(run.folder / FOLDER / "model.safetensors")
    for name, linear in weights_of(run).linears.items():
        sizes = [tensors[f"{name}.{part}"].nbytes if f"{name}.{part}" in tensors else 0
                 for part in ("weight", "scales", "biases")]
        assert (sizes[0], sizes[1] + sizes[2]) == CONSUMERS["mlx"].matrix_bytes(linear.format, *linear.shape)
