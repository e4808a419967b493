"""The search space: units of a decoder x ladder of storage formats x ladder of ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from qra_bo.space.allocation import Allocation
from qra_bo.space.decoder import DecoderSpec, Linear
from qra_bo.space.formats import StorageFormat
from qra_bo.space.ladder import Ladder
from qra_bo.utils.errors import SpaceError

IntArray = npt.NDArray[np.int64]
GRANULARITIES = ("layer", "block", "fused", "module")


@dataclass(frozen=True, slots=True)
class Unit:
    """Linear layers that share one choice of format and rank.

    Args:
        name: E.g. ``"model.layers.3"``, ``"model.layers.3.attn"`` or a full module path.
        linears: Its members.
    """

    name: str
    linears: tuple[Linear, ...]

    @property
    def numel(self) -> int:
        return sum(linear.numel for linear in self.linears)


@dataclass(frozen=True, repr=False)
class SearchSpace:
    """Units and ladders; also the codec between allocations and index arrays.

    An index row has ``2 L`` integers: ``L`` positions on the format ladder, then ``L`` on the rank ladder.

    >>> from qra_bo.memory import parse_format
    >>> unit = Unit("layers.0", (Linear("layers.0.q", 64, 64, 0, "attn", "qkv"),))
    >>> space = SearchSpace((unit,), (parse_format("nf4"), parse_format("int8")), Ladder("ranks", (4, 8)))
    >>> space
    SearchSpace(1 units, formats nf4 int8, ranks 4 8)
    >>> space.encode(Allocation(("int8",), (4,))).tolist()
    [1, 0]

    Args:
        units: The ``L`` units.
        formats: The ``F`` storage formats in increasing order of stored bits per weight.
        ranks: The ``R`` admissible ranks.

    Raises:
        SpaceError: If there is no unit or format, a format repeats, bits decrease along the ladder, or the
            largest rank exceeds the smallest side of some matrix.
    """

    units: tuple[Unit, ...]
    formats: tuple[StorageFormat, ...]
    ranks: Ladder

    def __repr__(self) -> str:
        return (f"SearchSpace({self.n_units} units, formats {' '.join(f.name for f in self.formats)}, "
                f"ranks {' '.join(map(str, self.ranks.values))})")

    def __post_init__(self) -> None:
        names = [f.name for f in self.formats]
        if not self.units or not self.formats or len(set(names)) != len(names):
            raise SpaceError(f"a search space needs units and distinct formats; got {len(self.units)} units "
                             f"and the formats {names}")
        if any(a.bits > b.bits for a, b in zip(self.formats, self.formats[1:], strict=False)):
            raise SpaceError(f"formats must be ordered by bits; got {names}")
        smallest = min((min(m.out_features, m.in_features), m.name) for u in self.units for m in u.linears)
        if self.ranks.values[-1] > smallest[0]:
            raise SpaceError(f"rank {self.ranks.values[-1]} is larger than {smallest[1]} allows "
                             f"(its smaller side is {smallest[0]}); lower the largest of ranks")

    @property
    def n_units(self) -> int:
        return len(self.units)

    @cached_property
    def format_index(self) -> dict[str, int]:
        return {f.name: i for i, f in enumerate(self.formats)}

    @cached_property
    def unit_numel(self) -> IntArray:
        """Parameters of every unit, ``L``."""
        return np.array([u.numel for u in self.units], dtype=np.int64)

    def contains(self, allocation: Allocation) -> bool:
        return (len(allocation) == self.n_units and all(f in self.format_index for f in allocation.formats)
                and all(r in self.ranks.values for r in allocation.ranks))

    def encode(self, allocation: Allocation) -> IntArray:
        """Index row, ``2 L``.

        Raises:
            SpaceError: If the allocation is not of this space.
        """
        if len(allocation) != self.n_units:
            raise SpaceError(f"the space has {self.n_units} units; the allocation has {len(allocation)}")
        unknown = sorted(set(allocation.formats) - self.format_index.keys())
        if unknown:
            raise SpaceError(f"formats {unknown} are not on the ladder {list(self.format_index)}")
        q = [self.format_index[f] for f in allocation.formats]
        return np.array(q + [self.ranks.index(r) for r in allocation.ranks], dtype=np.int64)

    def encode_all(self, allocations: list[Allocation]) -> IntArray:
        """Index rows, ``n x 2 L``."""
        return np.array([self.encode(a) for a in allocations], dtype=np.int64).reshape(-1, 2 * self.n_units)

    def decode(self, row: IntArray) -> Allocation:
        """Inverse of ``encode`` for one row of ``2 L`` integers."""
        n = self.n_units
        return Allocation(tuple(self.formats[int(i)].name for i in row[:n]),
                          tuple(self.ranks.values[int(i)] for i in row[n:]))

    def bits(self, allocation: Allocation) -> tuple[int, ...]:
        """Code bits of every unit; a format off the ladder is an error."""
        return tuple(self.formats[self.format_index[f]].bits for f in allocation.formats)

    def average_bits(self, allocation: Allocation) -> float:
        """Code bits weighted by parameters (metadata not counted)."""
        return average_bits(self.bits(allocation), self.unit_numel)


def average_bits(bits: Sequence[int], numel: IntArray) -> float:
    """Code bits of ``L`` units weighted by their parameters (metadata not counted)."""
    return float(np.dot(np.array(bits, dtype=np.int64), numel) / numel.sum())


def make_units(spec: DecoderSpec, granularity: str) -> tuple[Unit, ...]:
    """Group the linears of ``spec`` into units, in module order.

    Raises:
        SpaceError: If ``granularity`` is not one of ``layer``, ``block``, ``fused``, ``module``.
    """
    if granularity not in GRANULARITIES:
        raise SpaceError(f"granularity must be one of {list(GRANULARITIES)}; got {granularity!r}")
    members: dict[str, list[Linear]] = {}
    for linear in spec.linears:
        prefix = linear.name[: linear.name.index(f".{linear.layer}.") + len(f".{linear.layer}")]
        suffix = {"layer": "", "block": f".{linear.group}", "fused": f".{linear.fused}"}
        key = linear.name if granularity == "module" else prefix + suffix[granularity]
        members.setdefault(key, []).append(linear)
    return tuple(Unit(name, tuple(linears)) for name, linears in members.items())
