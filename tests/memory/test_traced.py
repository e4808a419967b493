"""The memory model against real training steps, followed storage by storage.

Never more than 0.5 % below, at most 5 % above: CONTRACT, "The budget".
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from qra_bo.memory.model import MemoryModel, TrainShape
from qra_bo.space import Allocation
from tests.memory.steps import DTYPES, Step, config_of, predicted, run_step

UNDER, OVER = 0.005, 0.05
PAIRS = pytest.mark.parametrize(("checkpointing", "compute"), [(False, 4), (True, 2)])


def check(step: Step, shape: TrainShape, formats: tuple[str, ...], ranks: tuple[int, ...], over: float = OVER) -> None:
    error = predicted(step, shape, formats, ranks) / step.peak - 1
    assert -UNDER <= error <= over


def shape_of(batch: int, length: int, checkpointing: bool, compute: int, chunk: int = 64) -> TrainShape:
    return TrainShape(batch, length, checkpointing, compute, logits_chunk=chunk)


@pytest.mark.parametrize(("family", "checkpointing", "compute"), [
    ("llama", False, 2), ("llama", True, 4), *((family, *pair) for family in (
        "llama", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt_neox", "phi3", "ministral3", "smollm3", "olmo3",
        "exaone4", "hunyuan_v1_dense") for pair in ((False, 4), (True, 2)))])
def test_families(family: str, checkpointing: bool, compute: int) -> None:
    extra: dict[str, Any] = dict(eos_token_id=1, bos_token_id=1) if family == "phi3" else \
        dict(attention_dropout=0.0, residual_dropout=0.0) if family == "seed_oss" else {}  # as every run has it
    shape, formats, ranks = shape_of(4, 64, checkpointing, compute), ("fp16",) * 3, (4,) * 3
    check(run_step(config_of(family, **extra), shape, formats, ranks), shape, formats, ranks)


@pytest.mark.parametrize(("family", "checkpointing", "compute", "tokens", "fmt", "experts", "even"), [
    ("qwen3_moe", False, 2, (4, 64), "sym3-g32", "none", False), ("qwen3_moe", True, 4, (4, 64), "fp16", "none", False),
    ("qwen3_moe", True, 2, (2, 24), "sym3-g32", "each", True), ("qwen3_moe", False, 4, (2, 24), "nf4", "each", False),
    ("mixtral", True, 2, (4, 64), "sym3-g32", "none", False), ("mixtral", True, 4, (2, 24), "nf4", "none", True),
    ("mixtral", False, 2, (2, 24), "fp16", "each", True), ("olmoe", True, 2, (2, 24), "sym3-g32", "none", True),
    ("olmoe", False, 4, (4, 64), "sym3-g32", "none", False), ("olmoe", True, 2, (4, 64), "nf4", "each", False)])
def test_mixtures_of_experts(family: str, checkpointing: bool, compute: int, tokens: tuple[int, int], fmt: str,
                             experts: str, even: bool) -> None:
    count = "num_local_experts" if family == "mixtral" else "num_experts"
    sizes: dict[str, Any] = {count: 8, "num_experts_per_tok": 2, "eos_token_id": None, "intermediate_size": 96}
    sizes |= {"moe_intermediate_size": 96} if family == "qwen3_moe" else {}
    shape, formats, ranks = shape_of(*tokens, checkpointing, compute), (fmt,) * 3, (4,) * 3
    check(run_step(config_of(family, **sizes), shape, formats, ranks, "layer", experts, even=even), shape, formats,
          ranks, over=0.03)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_types_of_16_bits(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DTYPES, 2, torch.float16)
    shape, formats, ranks = shape_of(4, 64, checkpointing, 2), ("sym4-g64",) * 3, (4,) * 3
    check(run_step(config_of("llama"), shape, formats, ranks), shape, formats, ranks)


@pytest.mark.parametrize(("batch", "length", "checkpointing", "compute"),
                         [(1, 16, False, 4), (2, 64, True, 2)])
@pytest.mark.parametrize("fmt", ["nf4", "int8", "hqq2", "hqq3", "fp16", "sym3-g64", "sym8-g32", "int2-g32",
                                 "int3-g64"])
def test_backends(fmt: str, batch: int, length: int, checkpointing: bool, compute: int) -> None:
    shape, formats, ranks = shape_of(batch, length, checkpointing, compute, 32), (fmt,) * 3, (8,) * 3
    check(run_step(config_of("llama"), shape, formats, ranks), shape, formats, ranks)


@pytest.mark.parametrize(("family", "scale"), [("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 0.5})])
def test_scaled_logits_are_made_in_chunks(family: str, scale: dict[str, float]) -> None:
    shape, formats, ranks = shape_of(4, 64, True, 4, 8), ("fp16",) * 3, (4,) * 3
    config = config_of(family, vocab_size=4096, **scale)
    check(run_step(config, shape, formats, ranks), shape, formats, ranks, over=0.5)  # families that are not listed


@pytest.mark.parametrize(("bits", "compute"), [(8, 2), (6, 4)])
@pytest.mark.parametrize(("family", "tied", "tile", "tokens", "checkpointing"), [
    ("llama", True, 1 << 20, (4, 64), False), ("llama", False, 1 << 13, (1, 8), True),
    ("gemma3_text", True, 1 << 13, (4, 64), False)])
def test_packed_embeddings(family: str, tied: bool, tile: int, tokens: tuple[int, int], checkpointing: bool, bits: int,
                           compute: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.memory.embeddings._TILE_NUMEL", {"cpu": tile})
    shape = replace(shape_of(*tokens, checkpointing, compute), embeddings=bits)
    formats, ranks, config = ("nf4",) * 3, (4,) * 3, config_of(family, vocab_size=1021, tie_word_embeddings=tied)
    step = run_step(config, shape, formats, ranks)
    check(step, shape, formats, ranks, over=0.01)
    if tile < 1 << 20:  # else a tile is the whole table, and larger than what these few tokens save
        assert predicted(step, shape, formats, ranks) < predicted(step, replace(shape, embeddings=16), formats, ranks)


@pytest.mark.parametrize(("granularity", "n"), [("layer", 3), ("block", 6), ("fused", 12), ("module", 21)])
def test_mixed_allocations_of_every_granularity(granularity: str, n: int) -> None:
    shape = shape_of(2, 64, n % 2 == 0, 2)
    formats, ranks = (("nf4", "hqq3", "int8") * 7)[:n], ((4, 16, 8) * 7)[:n]
    check(run_step(config_of("llama"), shape, formats, ranks, granularity), shape, formats, ranks)


@PAIRS
@pytest.mark.parametrize(("tokens", "ranks"), [((2, 64), (8, 8, 8)), ((1, 12), (32, 1, 32))])
def test_steps_that_accumulate(tokens: tuple[int, int], ranks: tuple[int, ...], checkpointing: bool,
                               compute: int) -> None:
    shape, formats = replace(shape_of(*tokens, checkpointing, compute, 32), accumulate=3), ("nf4", "int8", "hqq3")
    step = run_step(config_of("llama"), shape, formats, ranks)
    check(step, shape, formats, ranks)
    single = replace(shape, accumulate=1)
    assert run_step(config_of("llama"), single, formats, ranks).peak < step.peak  # earlier gradients are alive
    assert predicted(step, single, formats, ranks) < predicted(step, shape, formats, ranks)


@PAIRS
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma"])
def test_isolated_records_take_a_mask_and_repeated_heads(family: str, checkpointing: bool, compute: int) -> None:
    extra: dict[str, Any] = dict(eos_token_id=1, bos_token_id=1) if family == "phi3" else {}
    shape = replace(shape_of(2, 192, checkpointing, compute), isolated=True)
    formats, ranks = ("fp16",) * 3, (4,) * 3
    step = run_step(config_of(family, **extra), shape, formats, ranks)
    check(step, shape, formats, ranks)
    mask = 2 * 192 * 192 * 4 if family != "phi3" or compute == 2 else 0  # its fused product outlives isolation no more
    assert predicted(step, replace(shape, isolated=False), formats, ranks) < step.peak - mask // 2


@pytest.mark.parametrize(("tokens", "rank"), [((1, 16), 32), ((1, 8), 16), ((2, 12), 24)])
def test_gradients_that_outgrow_activations(tokens: tuple[int, int], rank: int) -> None:
    shape, formats, ranks = shape_of(*tokens, False, 4, 8), ("nf4",) * 3, (rank, 1, rank)
    check(run_step(config_of("llama"), shape, formats, ranks), shape, formats, ranks)


def test_resident_bytes_are_exact() -> None:
    shape, formats, ranks = shape_of(2, 32, False, 2), ("nf4", "int8", "hqq3"), (4, 2, 8)
    step = run_step(config_of("llama"), shape, formats, ranks)
    parts = MemoryModel(step.spec, shape).breakdown(step.space, Allocation(formats, ranks))
    resident = sum(parts[k] for k in ("weights", "quant_metadata", "unquantised", "adapters", "optimizer"))
    tables = 16 * 4 + 256 * 4  # NF4's levels and the map of its double quantisation, shared by all layers
    rotary = 2 * (32 // 2) * 2  # frequencies and their copy, cast with the model
    assert resident + tables + rotary == step.base


@pytest.mark.slow
@pytest.mark.parametrize(("fmt", "rank", "checkpointing", "compute"),
                         [("nf4", 4, False, 2), ("hqq3", 16, False, 4), ("int8", 16, True, 2)])
def test_the_embedded_defaults_shapes(fmt: str, rank: int, checkpointing: bool, compute: int) -> None:
    config = config_of("llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                       num_key_value_heads=3, head_dim=64, vocab_size=49152)
    shape, formats, ranks = shape_of(4, 128, checkpointing, compute, 128), (fmt,) * 30, (rank,) * 30
    check(run_step(config, shape, formats, ranks), shape, formats, ranks, over=0.01)
