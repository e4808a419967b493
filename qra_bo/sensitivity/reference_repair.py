"""Eqs. 4-5 written down as they stand: every candidate edit's total is computed anew. The measure of ``Repair``."""

import numpy as np

from qra_bo.errors import BudgetError
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.sensitivity.repair import edit_weights
from qra_bo.space import CostTable, IntArray


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
