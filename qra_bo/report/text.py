"""Text forms of numbers, names and allocations, shared by terminal, plots and page."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from qra_bo.utils.formatting import DASH

T = TypeVar("T")
ITSELF = "the best simple choice itself"
"""Instead of a difference to the best simple choice, where that is what was delivered."""


def duration(seconds: float) -> str:
    """``42 s``, ``7 min 05 s``, ``3 h 20 min``."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


def rough(seconds: float) -> str:
    """An estimate, rounded to its precision: ``42 s``, ``8 min``, ``3 h 20 min``, ``20 h``, ``51 days``."""
    if round(seconds) < 60:
        return duration(seconds)
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    if seconds < 10 * 3600:
        return duration(60 * round(seconds / 60)).removesuffix(" 00 min")
    return f"{round(seconds / 3600)} h" if seconds < 48 * 3600 else f"{round(seconds / 86_400)} days"


def short_names(units: Sequence[str]) -> list[str]:
    """Names of units without the dotted path that all of them share: ``3``, ``3.attn``, ``3.self_attn.q_proj``."""
    if len(units) < 2:
        return list(units)
    paths = [u.split(".") for u in units]
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False)))
    return [".".join(p[min(shared, len(p) - 1):]) for p in paths]


def runs(names: Sequence[str], values: Sequence[T]) -> list[tuple[str, T]]:
    """Join neighbours of equal value: ``[("0-2", 8), ("3", 4)]``."""
    out: list[tuple[str, T]] = []
    for value, group in itertools.groupby(zip(names, values, strict=True), key=lambda pair: pair[1]):
        members = [name for name, _ in group]
        out.append((members[0] if len(members) == 1 else f"{members[0]}{DASH}{members[-1]}", value))
    return out


def describe_allocation(units: Sequence[str], bits: Sequence[int], ranks: Sequence[int]) -> str:
    """Bits and ranks by unit on one line: ``0–2: 8-bit r4 · 3–11: 4-bit r2``."""
    pairs = [f"{b}-bit r{r}" for b, r in zip(bits, ranks, strict=True)]
    return " · ".join(f"{name}: {value}" for name, value in runs(short_names(units), pairs))


def allocation_rows(best: Mapping[str, Any]) -> list[tuple[str, object, str, object]]:
    """(units, bits, format, rank) of the contents of ``best.json``; neighbouring equal units share a row."""
    names = [f.get("name", f"{f['backend']} {f['bits']}-bit") for f in best["formats"]]
    rows = list(zip(best["bits"], names, best["ranks"], strict=True))
    return [(units, *row) for units, row in runs(short_names(best["units"]), rows)]
