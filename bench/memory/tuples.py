"""Models whose memory is predicted, allocations that are drawn for them, and the bytes that are predicted."""

from typing import Any

import numpy as np

from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel
from qra_bo.space import Allocation, DecoderSpec, SearchSpace, average_bits, make_units
from qra_bo.space.decoder import spec_from_numbers

KEYS = ("family", "n_layers", "hidden_size", "intermediate_size", "n_heads", "n_kv_heads", "head_dim", "vocab_size",
        "tied")
ARCHITECTURES: dict[str, tuple[Any, ...]] = {
    "SmolLM2-135M": ("llama", 30, 576, 1536, 9, 3, 64, 49152, True),
    "Qwen3-0.6B": ("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, True),
    "Gemma-2B": ("gemma", 18, 2048, 16384, 8, 1, 256, 256000, True),
    "Llama-3.2-3B": ("llama", 28, 3072, 8192, 24, 8, 128, 128256, True),
    "Pythia-6.9B": ("gpt_neox", 32, 4096, 16384, 32, 32, 128, 50432, False),
    "Llama-2-7B": ("llama", 32, 4096, 11008, 32, 32, 128, 32000, False),
    "Mistral-7B": ("mistral", 32, 4096, 14336, 32, 8, 128, 32768, False),
    "Qwen2.5-7B": ("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, False),
    "Llama-3.1-8B": ("llama", 32, 4096, 14336, 32, 8, 128, 128256, False),
    "Llama-2-13B": ("llama", 40, 5120, 13824, 40, 40, 128, 32000, False),
    "Qwen3-32B": ("qwen3", 64, 5120, 25600, 64, 8, 128, 151936, False),
    "Llama-2-70B": ("llama", 80, 8192, 28672, 64, 8, 128, 32000, False)}
BIASED = ("gpt_neox", "qwen2")
"""Families with biases in the projections of attention."""
FORMATS = ("hqq2", "hqq3", "nf4", "int8")
RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)


def spec_of(name: str) -> DecoderSpec:
    """Return the decoder of a name in ``ARCHITECTURES``."""
    numbers = dict(zip(KEYS, ARCHITECTURES[name], strict=True))
    return spec_from_numbers(name, **numbers, attention_bias=numbers["family"] in BIASED)


def space_of(spec: DecoderSpec, granularity: str = "layer") -> SearchSpace:
    """Return the search space of a decoder with ``FORMATS`` and ``RANKS``."""
    return SearchSpace(make_units(spec, granularity), tuple(map(parse_format, FORMATS)), RANKS)


def drawn(space: SearchSpace, rng: np.random.Generator, uniform_share: float = 1 / 3) -> Allocation:
    """Draw an allocation: a share of them uniform, the rest mixed unit by unit."""
    n_units = len(space.units)
    n = 1 if uniform_share and rng.random() < uniform_share else n_units
    formats, ranks = rng.choice(FORMATS, n), rng.choice(RANKS, n)
    return Allocation(tuple(map(str, np.resize(formats, n_units))), tuple(map(int, np.resize(ranks, n_units))))


def bits_of(space: SearchSpace, allocation: Allocation) -> float:
    """Return the mean bits of a weight of the linears, rounded."""
    return round(average_bits(space.bits(allocation), space.unit_numel), 3)


def total(memory: MemoryModel, space: SearchSpace, allocation: Allocation) -> int:
    """Return the predicted peak in bytes."""
    return int(memory.table(space).totals(space.encode(allocation)[None, :])[0])
