"""Allocations that the benchmarks of memory draw, and the bytes that are predicted for them."""

import numpy as np

from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel
from qra_bo.space import Allocation, DecoderSpec, Ladder, SearchSpace, average_bits, make_units

FORMATS = ("hqq2", "hqq3", "nf4", "int8")
RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)


def space_of(spec: DecoderSpec, granularity: str = "layer") -> SearchSpace:
    """Return the search space of a decoder with ``FORMATS`` and ``RANKS``."""
    return SearchSpace(make_units(spec, granularity), tuple(map(parse_format, FORMATS)), Ladder("ranks", RANKS))


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
