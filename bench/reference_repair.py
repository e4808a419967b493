"""Eqs. 4-5 written down as they stand, and the same with all edits of a step scored at once: what ``Repair`` is
measured by."""

import numpy as np

from qra_bo.sensitivity.repair import edit_weights
from qra_bo.space import CostTable, FloatArray, IntArray, PhaseCost
from qra_bo.utils.errors import BudgetError


def reference_repair(row: IntArray, costs: CostTable, budget_bytes: int, importance_q: FloatArray,
                     importance_r: FloatArray, keep: frozenset[int] = frozenset()) -> IntArray:
    """What ``Repair(costs, budget_bytes, importance_q, importance_r)(row, keep)`` returns, slowly.

    Raises:
        BudgetError: If ``row`` does not fit and nothing can be lowered any more.
        SpaceError: If an importance has the wrong shape, is negative or not finite.
    """
    weights = edit_weights(costs, importance_q, importance_r)
    row = row.copy()
    tables = [CostTable((phase,)) for phase in costs.phases]
    while costs.totals(row[None, :])[0] > budget_bytes:
        binding = tables[int(np.argmax([t.totals(row[None, :])[0] for t in tables]))]
        now = int(binding.totals(row[None, :])[0])
        best: tuple[bool, float, int] | None = None
        for coordinate in range(len(row)):
            if row[coordinate] == 0 or coordinate in keep:
                continue
            lowered = row.copy()
            lowered[coordinate] -= 1
            saved = now - int(binding.totals(lowered[None, :])[0])
            weight = float(weights[coordinate])
            key = (False, weight / saved, coordinate) if saved > 0 else (True, weight, coordinate)
            best = key if best is None else min(best, key)
        if best is None:
            raise BudgetError(f"the allocation needs more than the budget of {budget_bytes} bytes, and nothing of it "
                              "can be lowered any more; raise the budget, or admit lower bits or ranks")
        row[best[2]] -= 1
    return row


def vectorised_repair(row: IntArray, costs: CostTable, budget_bytes: int, importance_q: FloatArray,
                      importance_r: FloatArray) -> IntArray:
    """What ``Repair(costs, budget_bytes, importance_q, importance_r)(row)`` returns, by array operations.

    Raises:
        BudgetError: If ``row`` does not fit and nothing can be lowered any more.
        SpaceError: If an importance has the wrong shape, is negative or not finite.
    """
    weights = edit_weights(costs, importance_q, importance_r)
    row, n_units = row.copy(), costs.shape[0]
    tables = [CostTable((phase,)) for phase in costs.phases]
    while (totals := [int(t.totals(row[None, :])[0]) for t in tables]) and max(totals) > budget_bytes:
        movable = np.flatnonzero(row > 0)
        if not len(movable):
            raise BudgetError(f"the allocation needs {max(totals)} bytes, more than the budget of {budget_bytes}, and "
                              "nothing of it can be lowered any more; raise the budget, or admit lower bits or ranks")
        saved = _saved(row, movable, costs.phases[int(np.argmax(totals))], n_units)
        gains = saved > 0
        score = np.where(gains, weights[movable] / np.where(gains, saved, 1), weights[movable])
        row[movable[np.lexsort((movable, score, ~gains))[0]]] -= 1
    return row


def _saved(row: IntArray, movable: IntArray, phase: PhaseCost, n_units: int) -> IntArray:
    """Bytes of one phase that lowering each of the ``movable`` coordinates by one step saves."""
    units, q, r = np.arange(n_units), row[:n_units], row[n_units:]
    unit, of_format = movable % n_units, movable < n_units
    after = (unit, q[unit] - of_format, r[unit] - ~of_format)
    spikes = phase.spike[units, q, r]
    peak, owner = spikes.max(), int(spikes.argmax())
    others = np.full(n_units, peak)
    others[owner] = np.delete(spikes, owner).max(initial=0)
    saved: IntArray = (phase.unit[units, q, r][unit] - phase.unit[after] + peak
                       - np.maximum(others[unit], phase.spike[after]))
    return saved
