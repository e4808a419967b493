"""Limits within which methods are compared: memory scope, budget, and optionally average bits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qra_bo.memory.budget import Auto, parse_budget
from qra_bo.utils.errors import ConfigError

FREE = "free"
RULE = ("a limit is 'peak BUDGET' or 'stored BUDGET', optionally with '<=BITS' for average code bits, or 'free', each "
        "optionally with 'for METHOD,METHOD', e.g. 'peak uniform:4,16 <=4 for qra_bo,best_uniform'")
_LIMIT = re.compile(r"(?:(free)|(peak|stored) (\S+)(?: <=([0-9]+(?:\.[0-9]+)?))?)(?: for (\S+))?")


@dataclass(frozen=True, slots=True)
class Limit:
    """One set of conditions.

    Args:
        name: Name in the table, e.g. ``"peak uniform:4,16 <=4"``, or ``"free"``.
        scope: ``"peak"`` or ``"stored"``: the memory that is bounded and measured.
        budget: Size as a user writes it, or ``None`` for no limit.
        max_average_bits: Limit on code bits averaged over parameters, or ``None``.
        methods: Methods that are compared within it, or ``None`` for all that apply.
    """

    name: str
    scope: Literal["peak", "stored"]
    budget: str | None
    max_average_bits: float | None
    methods: tuple[str, ...] | None


def parse_limit(text: str) -> Limit:
    """Parse a limit.

    Raises:
        ConfigError: If it is malformed.
        BudgetError: If its budget is malformed.
    """
    match = _LIMIT.fullmatch(" ".join(text.split()))
    if match is None:
        raise ConfigError(f"{text!r} is not a limit: {RULE}")
    methods = tuple(match[5].split(",")) if match[5] else None
    if match[1]:
        return Limit(FREE, "peak", None, None, methods)
    if isinstance(parse_budget(match[3]), Auto):
        raise ConfigError(f"{text!r} depends on the free memory of this device, and a table may be resumed on another "
                          "one; give a size, or uniform:BITS,RANK")
    bits = None if match[4] is None else float(match[4])
    name = f"{match[2]} {match[3]}" + ("" if bits is None else f" <={bits:g}")
    return Limit(name, "peak" if match[2] == "peak" else "stored", match[3], bits, methods)


def parse_limits(texts: Sequence[str]) -> list[Limit]:
    """Parse limits.

    Raises:
        ConfigError: If one is malformed or named twice.
    """
    limits = [parse_limit(text) for text in texts]
    names = [limit.name for limit in limits]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"table1.limits names {twice[0]!r} twice; give each limit once")
    return limits
