"""Memory of allocations as tables, for filters, repair and exact solvers; a limit on average bits as one more phase."""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from qra_bo.space.space import FloatArray, IntArray, SearchSpace
from qra_bo.utils.errors import BudgetError

CODES = "codes"
"""Name of the phase that limits average bits: no phase of memory."""


@dataclass(frozen=True)
class PhaseCost:
    """Bytes of one phase of training: ``fixed + sum_u unit[u] + max_u spike[u]``.

    Args:
        name: E.g. ``"forward"``, ``"backward"``, ``"step"``, ``"stored"``.
        fixed: Bytes common to all allocations.
        unit: ``L x F x R`` bytes that add up over units.
        spike: ``L x F x R`` bytes that are alive for one unit at a time (workspace): the largest counts.
    """

    name: str
    fixed: int
    unit: IntArray
    spike: IntArray


@dataclass(frozen=True)
class CostTable:
    """The memory of every allocation of a space: the largest of its phases.

    Args:
        phases: At least one; all tables have the same ``L x F x R`` (units, formats, ranks).
    """

    phases: tuple[PhaseCost, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(L, F, R)``."""
        n, f, r = self.phases[0].unit.shape
        return n, f, r

    def totals(self, rows: IntArray) -> IntArray:
        """Bytes of ``n x 2 L`` index rows, ``n``."""
        n_units = self.shape[0]
        chosen = np.arange(n_units), rows[:, :n_units], rows[:, n_units:]
        best = np.zeros(len(rows), dtype=np.int64)
        for phase in self.phases:
            best = np.maximum(best, phase.fixed + phase.unit[chosen].sum(axis=1) + phase.spike[chosen].max(axis=1))
        return best

    def feasible(self, rows: IntArray, budget: int) -> npt.NDArray[np.bool_]:
        """Which of the ``n x 2 L`` index rows fit into ``budget`` bytes, ``n``."""
        return self.totals(rows) <= budget


def limit_average_bits(costs: CostTable, space: SearchSpace, budget_bytes: int, limit: float) -> CostTable:
    """Return ``costs`` with a phase that exceeds the budget exactly where the average code bits exceed ``limit``.

    An average of at most ``limit`` bits means at most ``limit`` times the parameters over 8 bytes of codes. The phase
    holds the bytes of codes and the rest of the budget beyond that limit, so that a byte of codes counts in it as in
    the phases of memory. Total bytes of an allocation are its memory, or this phase where it is nearer to its limit.
    The table is for this budget only. Raises ``BudgetError`` if even the lowest format has more bits.
    """
    if space.formats[0].bits > limit:
        raise BudgetError(f"max_average_bits={limit:g} is below the lowest bit-width of the space, "
                          f"{space.formats[0].bits}; raise it, or add lower bits")
    bits = np.array([f.bits for f in space.formats], dtype=np.int64)
    none = np.zeros(costs.shape, dtype=np.int64)
    codes = (space.unit_numel[:, None] * bits // 8)[:, :, None] + none
    allowed = int(Fraction(str(limit)) * int(space.unit_numel.sum()) / 8)
    return CostTable((*costs.phases, PhaseCost(CODES, budget_bytes - allowed, codes, none)))


def with_allowance(costs: CostTable, allowance: int) -> CostTable:
    """Return ``costs`` with ``allowance`` more bytes in every phase of memory; a limit on average bits stays."""
    return CostTable(tuple(p if p.name == CODES else replace(p, fixed=p.fixed + allowance) for p in costs.phases))


def pareto_front(losses: FloatArray, memory: IntArray) -> IntArray:
    """Return indices of the points that no other point beats in both loss and bytes (``n`` each), ascending in loss."""
    order = np.lexsort((memory, losses))
    least = np.minimum.accumulate(memory[order])
    return np.asarray(order[np.diff(least, prepend=np.iinfo(np.int64).max) < 0])
