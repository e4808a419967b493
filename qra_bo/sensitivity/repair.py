"""Eqs. 4-5: lower an allocation step by step, least important bytes first, until it fits the budget."""

import numpy as np

from qra_bo.space import CostTable, FloatArray, IntArray
from qra_bo.utils.errors import BudgetError

EPS = 1e-8
"""Added to every importance, so that among unimportant units the bytes saved decide."""


class Repair:
    """Applies, while the allocation does not fit, the downgrade with the least (importance + eps) / (bytes saved).

    Bytes saved are counted in the phase that binds (the first of the largest). Where no edit saves bytes there
    (e.g. several units share the largest spike), the least important one is applied.

    Args:
        importance_q: I_q, ``L``, min-max scaled.
        importance_r: I_r, ``L``, min-max scaled.
    """

    def __init__(self, costs: CostTable, budget_bytes: int, importance_q: FloatArray, importance_r: FloatArray) -> None:
        self._weights = np.concatenate([importance_q, importance_r]) + EPS
        self._budget, self._units = budget_bytes, np.arange(costs.shape[0])
        self._fixed = np.array([p.fixed for p in costs.phases])
        self._sizes, self._spikes = (np.stack(tables) for tables in zip(*((p.unit, p.spike) for p in costs.phases),
                                                                        strict=True))

    def __call__(self, row: IntArray, keep: frozenset[int] = frozenset()) -> IntArray:
        """The repaired row, ``2 L``; ``row`` itself, copied, if it fits.

        Raises ``BudgetError`` if it does not fit and nothing can be lowered any more.

        Args:
            row: Index row, ``2 L``.
            keep: Coordinates that are not to be lowered.
        """
        row, units, free = row.copy(), self._units, np.ones(len(row), dtype=bool)
        free[list(keep)] = False
        while True:
            q, r = row[:len(units)], row[len(units):]
            sizes, spikes = self._sizes[:, units, q, r], self._spikes[:, units, q, r]
            totals = self._fixed + sizes.sum(axis=1) + spikes.max(axis=1)
            binding = int(totals.argmax())
            if totals[binding] <= self._budget:
                return row
            edits = np.flatnonzero(free & (row > 0))
            if not len(edits):
                raise BudgetError(f"the allocation needs {totals[binding]} bytes, more than the budget of "
                                  f"{self._budget}, and nothing of it can be lowered any more; raise the budget, or "
                                  "admit lower bits or ranks")
            unit, of_format = edits % len(units), edits < len(units)
            after = (binding, unit, q[unit] - of_format, r[unit] - ~of_format)
            peak, owner = spikes[binding].max(), int(spikes[binding].argmax())
            others = np.full(len(units), peak)  # largest spike of the other units
            others[owner] = np.delete(spikes[binding], owner).max(initial=0)
            saved = (sizes[binding, unit] - self._sizes[after]) + (peak - np.maximum(others[unit], self._spikes[after]))
            if (saved > 0).any():
                edits, saved = edits[saved > 0], saved[saved > 0]
                row[edits[np.argmin(self._weights[edits] / saved)]] -= 1
            else:
                row[edits[np.argmin(self._weights[edits])]] -= 1
