"""An allocation: one storage format and one LoRA rank for every unit of a decoder."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qra_bo.utils.errors import SpaceError


@dataclass(frozen=True, slots=True, repr=False)
class Allocation:
    """One format and one rank for each of the ``L`` units; hashable, so that sets and caches can hold it.

    >>> Allocation(("nf4", "nf4", "int8"), (4, 4, 8))
    Allocation(2 x nf4 r4, int8 r8)

    Args:
        formats: Name of the storage format of every unit, e.g. ``"nf4"`` (see ``memory.formats``).
        ranks: LoRA rank of every unit; 0 leaves the unit without an adapter.

    Raises:
        SpaceError: If the two differ in length or are empty, or a rank is negative.
    """

    formats: tuple[str, ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.formats or len(self.formats) != len(self.ranks):
            raise SpaceError(f"an allocation needs one format and one rank for every unit; "
                             f"got {len(self.formats)} formats and {len(self.ranks)} ranks")
        if any(type(r) is not int or r < 0 for r in self.ranks):
            raise SpaceError(f"ranks must be integers of at least 0; got {list(self.ranks)}")

    def __repr__(self) -> str:
        runs = [(name, len(list(group))) for name, group in
                itertools.groupby(f"{f} r{r}" for f, r in zip(self.formats, self.ranks, strict=True))]
        return f"Allocation({', '.join(name if n == 1 else f'{n} x {name}' for name, n in runs)})"

    def __len__(self) -> int:
        return len(self.formats)

    @property
    def fingerprint(self) -> str:
        """Name of this allocation in every process and release: sixteen hexadecimal digits."""
        text = json.dumps([list(self.formats), list(self.ranks)], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {"formats": list(self.formats), "ranks": list(self.ranks)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Allocation":
        """Inverse of ``to_json``.

        Raises:
            SpaceError: If a field is missing or of the wrong type.
        """
        formats, ranks = data.get("formats"), data.get("ranks")
        if not isinstance(formats, list) or not isinstance(ranks, list) \
                or not all(isinstance(f, str) for f in formats):
            raise SpaceError("an allocation needs the lists 'formats' (names) and 'ranks' (integers)")
        return cls(tuple(formats), tuple(ranks))


def uniform(n_units: int, fmt: str, rank: int) -> Allocation:
    """Return the allocation with one format and rank for every unit."""
    return Allocation((fmt,) * n_units, (rank,) * n_units)
