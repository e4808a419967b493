"""An allocation: one storage format and one LoRA rank for every unit of a decoder; ranks as PEFT's patterns."""

import hashlib
import itertools
import json
import math
import re
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
        ranks: LoRA rank of every unit; 0 leaves the unit without an adapter. ``SpaceError`` if the two differ in length
            or are empty, or a rank is negative.
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
        """Inverse of ``to_json``; raises ``SpaceError`` if a field is missing or of the wrong type."""
        formats, ranks = data.get("formats"), data.get("ranks")
        if not isinstance(formats, list) or not isinstance(ranks, list) or not all(isinstance(f, str) for f in formats):
            raise SpaceError("an allocation needs the lists 'formats' (names) and 'ranks' (integers)")
        return cls(tuple(formats), tuple(ranks))


def uniform(n_units: int, fmt: str, rank: int) -> Allocation:
    """Return the allocation with one format and rank for every unit."""
    return Allocation((fmt,) * n_units, (rank,) * n_units)


_EXPERT = re.compile(r"\\\.experts\\\.\d+\\\.")
"""An expert of a stack in an escaped path."""


def peft_patterns(ranks_by_module: Mapping[str, int], alpha_over_rank: float) -> dict[str, Any]:
    """Translate one rank for every module into keyword arguments of ``peft.LoraConfig``: ``r`` and ``lora_alpha``,
    ``target_modules``, and the patterns of ranks and alphas, whose keys are regular expressions.

    >>> patterns = peft_patterns({"layers.0.q_proj": 4, "layers.0.k_proj": 0}, alpha_over_rank=2)
    >>> patterns["rank_pattern"], patterns["target_modules"], patterns["lora_alpha"]
    ({'layers\\\\.0\\\\.q_proj': 4}, ['layers.0.q_proj'], 8)

    PEFT matches ``(.*\\.)?(key)$`` and the first match wins, so names are escaped and one name may not be the
    tail of another. Both patterns name every adapted module, since a rank without its alpha is scaled wrongly.
    Experts of one stack share a pattern: PEFT's search is quadratic in their number.
    The default ``r`` is the largest rank: servers size their buffers by it, and with a constant alpha / r the
    scaling they derive from it is right for every module. Rank 0 leaves a module out of ``target_modules``.

    Ranks are at least 0, and one at least 1. Raises ``SpaceError`` if the scaling alpha / r is not a positive finite
    number, or one module's path is the tail of another's.
    """
    if not (math.isfinite(alpha_over_rank) and alpha_over_rank > 0):
        raise SpaceError(f"alpha / r must be a positive number, e.g. 2; got {alpha_over_rank}")
    ranks = {name: rank for name, rank in ranks_by_module.items() if rank > 0}
    for name in ranks_by_module:
        tail = name
        while tail := tail.partition(".")[2]:
            if tail in ranks_by_module:
                raise SpaceError(f"PEFT can't distinguish the module {tail!r} from {name!r}: it matches names by their "
                                 "tail; give full module paths")
    largest = max(ranks.values())
    keys = {name: _EXPERT.sub(lambda _: r"\.experts\.\d+\.", re.escape(name)) for name in ranks}
    by_key = {keys[name]: rank for name, rank in ranks.items()}
    if any(by_key[keys[name]] != rank for name, rank in ranks.items()):
        raise SpaceError("experts of one stack have one rank")
    return {"rank_pattern": by_key, "alpha_pattern": {key: _plain(r * alpha_over_rank) for key, r in by_key.items()},
            "target_modules": list(ranks), "r": largest, "lora_alpha": _plain(largest * alpha_over_rank)}


def _plain(value: float) -> float:
    """An integer where the value is one: PEFT declares alpha as an integer, and files read better so."""
    return int(value) if float(value).is_integer() else value
