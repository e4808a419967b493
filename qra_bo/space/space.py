"""The search space: units of a decoder x ladder of storage formats x ladder of ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Annotated

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le

from qra_bo.space.allocation import Allocation
from qra_bo.space.decoder import DecoderSpec, Linear, stack_of
from qra_bo.utils.errors import SpaceError

BLIND_RULE = "both ends first"
"""Name of the rule that decides which units of a fractional choice (two neighbouring formats, one rank) are wider. It
measures nothing: layers at the ends of the depth come before those in the middle, the last layer first. With one format
everywhere these are the simple choices, which any choice of layers must beat."""


@dataclass(frozen=True, slots=True)
class StorageFormat:
    """How the weights of one linear layer are stored.

    Args:
        name: Short unique name, e.g. ``"nf4"``, ``"int8"``, ``"hqq3"``, ``"sym2-g32"``, ``"fp16"``.
        backend: A key of ``memory.formats.BACKENDS``.
        bits: Code bits per weight, 1 to 16.
        block: Weights that share one scale; 0 where a scale belongs to a whole row or there is none.
        double_quant: Whether the scales are themselves stored in 8 bits (bitsandbytes NF4 only).
    """

    name: str
    backend: str
    bits: Annotated[int, Ge(1), Le(16)]
    block: int
    double_quant: bool = False

    @property
    def is_base(self) -> bool:
        """Whether weights in it are those of the base as it was loaded: nothing is quantised here."""
        return self.backend in ("none", "gguf")


def check_ladder(name: str, values: Sequence[int]) -> None:
    """Raise ``SpaceError`` unless the admissible values of an axis, e.g. of ``"ranks"``, are at least one positive
    integer, strictly increasing; steps may be unequal."""
    positive = bool(values) and all(type(v) is int and v > 0 for v in values)
    if not positive or any(a >= b for a, b in pairwise(values)):
        usable = sorted({v for v in values if type(v) is int and v > 0}) or [2, 4, 8]  # for bits and ranks
        raise SpaceError(f"the {name} ladder must be positive integers, strictly increasing, "
                         f"e.g. [{','.join(map(str, usable))}]; got {list(values)}")


IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
ENOUGH_BITS = 8
"""Bits with which a fine-tuned model loses nothing measurable against 16."""
GRANULARITIES = ("layer", "block", "fused", "module")


@dataclass(frozen=True, slots=True)
class Unit:
    """Linear layers that share one format and rank, named e.g. ``"model.layers.3.attn"``."""

    name: str
    linears: tuple[Linear, ...]

    @property
    def numel(self) -> int:
        return sum(linear.numel for linear in self.linears)

    @property
    def adapted(self) -> tuple[Linear, ...]:
        """Linears with an adapter of the unit's rank; the experts of a mixture may have none."""
        return tuple(linear for linear in self.linears if linear.adapted)


@dataclass(frozen=True, repr=False)
class SearchSpace:
    """Units and ladders; also the codec between allocations and index arrays.

    An index row has ``2 L`` integers: ``L`` positions on the format ladder, then ``L`` on the rank ladder.

    >>> from qra_bo.memory import parse_format
    >>> unit = Unit("layers.0", (Linear("layers.0.q", 64, 64, 0, "attn", "qkv"),))
    >>> space = SearchSpace((unit,), (parse_format("nf4"), parse_format("int8")), (4, 8))
    >>> space
    SearchSpace(1 units, formats nf4 int8, ranks 4 8)
    >>> space.encode(Allocation(("int8",), (4,))).tolist()
    [1, 0]

    Args:
        units: The ``L`` units.
        formats: The ``F`` storage formats in increasing order of stored bits per weight.
        ranks: The ``R`` admissible ranks, increasing.

    Raises:
        SpaceError: If there is no unit or format, a format repeats, bits decrease along their ladder, ranks are none,
            or the largest exceeds the smallest side of some matrix with an adapter.
    """

    units: tuple[Unit, ...]
    formats: tuple[StorageFormat, ...]
    ranks: tuple[int, ...]

    def __repr__(self) -> str:
        return (f"SearchSpace({self.n_units} units, formats {' '.join(f.name for f in self.formats)}, "
                f"ranks {' '.join(map(str, self.ranks))})")

    def __post_init__(self) -> None:
        names = [f.name for f in self.formats]
        if not self.units or not self.formats or len(set(names)) != len(names):
            raise SpaceError(f"a search space needs units and distinct formats; got {len(self.units)} units "
                             f"and the formats {names}")
        check_ladder("ranks", self.ranks)
        if any(a.bits > b.bits for a, b in pairwise(self.formats)):
            raise SpaceError(f"formats must be ordered by bits; got {names}")
        sides = [(min(m.out_features, m.in_features), m.name) for u in self.units for m in u.adapted]
        if not sides:
            raise SpaceError("no unit has a linear with an adapter; give adapter.experts=each")
        smallest = min(sides)
        if self.ranks[-1] > smallest[0]:
            raise SpaceError(f"rank {self.ranks[-1]} is larger than {smallest[1]} allows "
                             f"(its smaller side is {smallest[0]}); use no rank above {smallest[0]}")

    @property
    def n_units(self) -> int:
        return len(self.units)

    @property
    def widest(self) -> StorageFormat:
        """The format beyond which further bits count for nothing: the first of the least width of at least 8 bits, else
        of the largest width."""
        width = min((f.bits for f in self.formats if f.bits >= ENOUGH_BITS), default=self.formats[-1].bits)
        return next(f for f in self.formats if f.bits == width)

    @cached_property
    def format_index(self) -> dict[str, int]:
        return {f.name: i for i, f in enumerate(self.formats)}

    @cached_property
    def unit_numel(self) -> IntArray:
        """Parameters of every unit, ``L``."""
        return np.array([u.numel for u in self.units], dtype=np.int64)

    @cached_property
    def unit_share(self) -> FloatArray:
        """Share of every unit in the parameters of all, ``L``."""
        return np.asarray(self.unit_numel / self.unit_numel.sum())

    def contains(self, allocation: Allocation) -> bool:
        return (len(allocation) == self.n_units and all(f in self.format_index for f in allocation.formats)
                and all(r in self.ranks for r in allocation.ranks))

    def encode(self, allocation: Allocation) -> IntArray:
        """Index row, ``2 L``; raises ``SpaceError`` if the allocation is not of this space."""
        if len(allocation) != self.n_units:
            raise SpaceError(f"the space has {self.n_units} units; the allocation has {len(allocation)}")
        unknown = sorted(set(allocation.formats) - self.format_index.keys())
        if unknown:
            raise SpaceError(f"formats {unknown} are not on the ladder {list(self.format_index)}")
        if off := set(allocation.ranks) - set(self.ranks):
            raise SpaceError(f"{min(off)} is not on the ranks ladder {list(self.ranks)}")
        return np.array([self.format_index[f] for f in allocation.formats]
                        + [self.ranks.index(r) for r in allocation.ranks], dtype=np.int64)

    def decode(self, row: IntArray) -> Allocation:
        """Inverse of ``encode`` for one row of ``2 L`` integers."""
        n = self.n_units
        return Allocation(tuple(self.formats[int(i)].name for i in row[:n]), tuple(self.ranks[int(i)] for i in row[n:]))

    def bits(self, allocation: Allocation) -> tuple[int, ...]:
        """Code bits of every unit; a format off the ladder is an error."""
        return tuple(self.formats[self.format_index[f]].bits for f in allocation.formats)


def average_bits(bits: Sequence[int], numel: IntArray) -> float:
    """Code bits of ``L`` units weighted by their parameters (metadata not counted)."""
    return float(np.dot(np.array(bits, dtype=np.int64), numel) / numel.sum())


def make_units(spec: DecoderSpec, granularity: str) -> tuple[Unit, ...]:
    """Group linears of ``spec`` into units by one of ``GRANULARITIES``, in module order, a layer's experts together."""
    members: dict[str, list[Linear]] = {}
    for linear in spec.linears:
        prefix = linear.name.partition(f".{linear.layer}.")[0] + f".{linear.layer}"
        suffix = {"layer": "", "block": f".{linear.group}", "fused": f".{linear.fused}"}
        key = stack_of(linear.name) if granularity == "module" else prefix + suffix[granularity]
        members.setdefault(key, []).append(linear)
    return tuple(Unit(name, tuple(linears)) for name, linears in members.items())


def blind_order(space: SearchSpace) -> tuple[int, ...]:
    """Return the ``L`` units in the order in which they get the wider format: layers from both ends of the depth in
    turn, the last first; units of one layer in their own order."""
    layers = [min(linear.layer for linear in unit.linears) for unit in space.units]
    ranked = sorted(set(layers))
    turn = {layer: min(2 * (len(ranked) - 1 - i), 2 * i + 1) for i, layer in enumerate(ranked)}
    return tuple(sorted(range(space.n_units), key=lambda unit: turn[layers[unit]]))


def wider_units(order: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which units are wider where the first 0 to ``L`` ones of ``order`` are, ``(L + 1) x L``."""
    return np.asarray(np.argsort(order)[None, :] < np.arange(len(order) + 1)[:, None])


def mix(space: SearchSpace, low: StorageFormat, high: StorageFormat, bits: Fraction, rank: int,
        order: Sequence[int] | None = None) -> Allocation:
    """Return the allocation of one rank in which as many first units of ``order`` (``None``: by the blind rule) have
    the format ``high``, and the others ``low``, as keep the average of code bits, weighted by parameters, to ``bits``.

    With more bits no unit gets fewer. ``bits`` are at least those of ``low``.
    """
    order = blind_order(space) if order is None else order
    room = (bits - low.bits) * int(space.unit_numel.sum())
    spent = (high.bits - low.bits) * np.cumsum(space.unit_numel[list(order)])
    wider = wider_units(order)[sum(int(n) <= room for n in spent)]
    return Allocation(tuple(high.name if w else low.name for w in wider), (rank,) * space.n_units)
