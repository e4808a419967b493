"""The best allocation of an additive objective under the budget: an exact multiple-choice knapsack (HiGHS)."""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_array, csr_array

from qra_bo.space.cost import CostTable
from qra_bo.space.space import FloatArray, IntArray
from qra_bo.utils.errors import BudgetError, QRABOError, SpaceError

_LARGEST_COEFFICIENT = 1000.0
_SLACK = 1e-6  # only ever admits too much: rows that exceed the budget are cut
_INFEASIBLE = 2  # status of scipy.optimize.milp
MOST_NODES = 500
"""Branch-and-bound nodes of a solve that need not be exact; the default search took 329 at most for 30 units."""


def solve_knapsack(values: FloatArray, costs: CostTable, budget_bytes: int, *, forbid: IntArray | None = None,
                   rel_gap: float = 0.0) -> IntArray:
    """Return the row (``2 L``) that minimises ``sum_u values[u, q_u, r_u]`` within the budget, forbidden ones excluded.

    Forbidden rows become no-good cuts, each added when the solver returns it.

    Args:
        values: ``L x F x R``, finite.
        costs: Memory of every allocation; several phases and spikes are treated exactly.
        budget_bytes: Hard limit.
        forbid: ``n x 2 L`` rows to exclude.
        rel_gap: Relative gap at which the solver may stop; 0 is exact. With a gap it also stops at ``MOST_NODES``
            nodes if it has a row, because many near-equal rows can take minutes.

    Raises:
        SpaceError: If ``values`` has the wrong shape or is not finite.
        BudgetError: If no admissible row fits into the budget.
        QRABOError: If the solver fails for any other reason.
    """
    if values.shape != costs.shape or not np.isfinite(values).all():
        raise SpaceError(f"values must be finite and of shape {costs.shape}; got shape {values.shape}")
    banned = set() if forbid is None else {tuple(int(v) for v in row) for row in forbid}
    cuts: list[IntArray] = []
    while True:
        row = _solve(values, costs, budget_bytes, cuts, rel_gap)
        # The solver has tolerances, the budget is exact to the byte: a row that exceeds it is cut too.
        if tuple(int(v) for v in row) not in banned and costs.feasible(row[None, :], budget_bytes)[0]:
            return row
        cuts.append(row)


def _solve(values: FloatArray, costs: CostTable, budget: int, cuts: list[IntArray], rel_gap: float) -> IntArray:
    """Solve one program: a binary variable for every option of a unit, and for every phase the bytes of its largest
    spike beyond those that no allocation avoids."""
    n_units, _, n_ranks = values.shape
    flat, n_phases = values.reshape(n_units, -1), len(costs.phases)
    unit, column = np.repeat(np.arange(n_units), flat.shape[1]), np.arange(flat.size)

    def by_unit(coefficients: FloatArray) -> csr_array:  # a row a unit, over its own options
        return csr_array((coefficients.ravel(), (unit, column)))

    blocks, bounds = [[by_unit(np.ones(flat.shape)), None]], [(np.ones(n_units), np.ones(n_units))]
    for cut in cuts:
        picked = column.reshape(flat.shape)[np.arange(n_units), flatten(cut, n_ranks)]
        blocks.append([csr_array(np.isin(column, picked)[None] * 1.0), None])
        bounds.append((np.array([-np.inf]), np.array([n_units - 1.0])))
    for phase, own in zip(costs.phases, np.eye(n_phases), strict=True):
        size, spike = phase.unit.reshape(flat.shape), phase.spike.reshape(flat.shape)
        low, least = size.min(axis=1), int(spike.min(axis=1).max())
        # Coefficients of moderate size suit the solver's absolute tolerance.
        scale = max(int((size - low[:, None]).max()), 1) / _LARGEST_COEFFICIENT
        blocks.append([csr_array((size - low[:, None]).reshape(1, -1) / scale), csr_array(own[None])])
        blocks.append([by_unit(np.maximum(spike - least, 0) / scale), csr_array(np.tile(-own, (n_units, 1)))])
        room = (budget - phase.fixed - int(low.sum()) - least) / scale + _SLACK
        bounds += [(np.array([-np.inf]), np.array([room])), (np.full(n_units, -np.inf), np.zeros(n_units))]
    constraints = LinearConstraint(block_array(blocks).tocsr(), *map(np.concatenate, zip(*bounds, strict=True)))
    objective = (flat - flat.min(axis=1, keepdims=True)).ravel()
    objective, spikes = objective / (objective.max() or 1.0), np.zeros(n_phases)
    for limit in ({"node_limit": MOST_NODES}, {}) if rel_gap > 0 else ({},):
        result = milp(np.append(objective, spikes), integrality=np.append(np.ones(flat.size), spikes),
                      bounds=Bounds(0.0, np.append(np.ones(flat.size), spikes + np.inf)), constraints=constraints,
                      options={"mip_rel_gap": rel_gap, **limit})
        if result.x is not None or result.status == _INFEASIBLE:
            break
    if result.status == _INFEASIBLE:
        raise BudgetError(f"no {'further ' if cuts else ''}allocation of the space fits into {budget} bytes; "
                          "raise the budget, or admit lower bits or ranks")
    if result.x is None:
        raise QRABOError(f"the knapsack of {n_units} units was not solved: {result.message}")
    choice = result.x[:flat.size].reshape(flat.shape).argmax(axis=1)
    return np.concatenate([choice // n_ranks, choice % n_ranks]).astype(np.int64)


def flatten(row: IntArray, n_ranks: int) -> IntArray:
    """Option of every unit (``L``) of an index row (``2 L``)."""
    n_units = len(row) // 2
    return row[:n_units] * n_ranks + row[n_units:]
