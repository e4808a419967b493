"""Memory of allocations as tables, for filters, repair and exact solvers."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qra_bo.space.space import IntArray


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
    """The memory of every allocation of a space: the largest of its phases."""

    phases: tuple[PhaseCost, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(L, F, R)``."""
        n, f, r = self.phases[0].unit.shape
        return n, f, r

    def totals(self, rows: IntArray) -> IntArray:
        """Bytes of ``n x 2 L`` index rows, ``n``."""
        n_units = self.shape[0]
        units = np.arange(n_units)
        q, r = rows[:, :n_units], rows[:, n_units:]
        best = np.zeros(len(rows), dtype=np.int64)
        for phase in self.phases:
            total = phase.fixed + phase.unit[units, q, r].sum(axis=1) + phase.spike[units, q, r].max(axis=1)
            best = np.maximum(best, total)
        return best

    def feasible(self, rows: IntArray, budget: int) -> npt.NDArray[np.bool_]:
        """Which of the ``n x 2 L`` index rows fit into ``budget`` bytes, ``n``."""
        return self.totals(rows) <= budget
