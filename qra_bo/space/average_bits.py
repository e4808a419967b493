"""A limit on average code bits, as one more phase of a cost table, so that every searcher keeps to it."""

from dataclasses import replace
from fractions import Fraction

import numpy as np

from qra_bo.space.cost import CostTable, PhaseCost
from qra_bo.space.space import SearchSpace
from qra_bo.utils.errors import BudgetError

CODES = "codes"
"""Name of the phase that limits average bits: no phase of memory."""


def limit_average_bits(costs: CostTable, space: SearchSpace, budget_bytes: int, limit: float) -> CostTable:
    """Return ``costs`` with a phase that exceeds the budget exactly where the average code bits exceed ``limit``.

    An average of at most ``limit`` bits means at most ``limit`` times the parameters over 8 bytes of codes. The phase
    holds the bytes of codes and the rest of the budget beyond that limit, so that a byte of codes counts in it as in
    the phases of memory. Total bytes of an allocation are its memory, or this phase where it is nearer to its limit.

    Args:
        costs: Memory of every allocation of ``space``.
        space: Units and formats.
        budget_bytes: The budget that the table will be used with.
        limit: Largest average of code bits.

    Raises:
        BudgetError: If even the lowest format has more bits.
    """
    lowest = space.formats[0]
    if lowest.bits > limit:
        raise BudgetError(f"max_average_bits={limit:g} is below the lowest bit-width of the space, {lowest.bits}; "
                          "raise it, or add lower bits")
    bits = np.array([f.bits for f in space.formats], dtype=np.int64)
    none = np.zeros(costs.shape, dtype=np.int64)
    codes = (space.unit_numel[:, None] * bits // 8)[:, :, None] + none
    allowed = int(Fraction(str(limit)) * int(space.unit_numel.sum()) / 8)
    return CostTable((*costs.phases, PhaseCost(CODES, budget_bytes - allowed, codes, none)))


def with_allowance(costs: CostTable, allowance: int) -> CostTable:
    """Return ``costs`` with ``allowance`` more bytes in every phase of memory; a limit on average bits stays."""
    return CostTable(tuple(p if p.name == CODES else replace(p, fixed=p.fixed + allowance) for p in costs.phases))
