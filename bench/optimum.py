"""The optimum of a planted landscape (``oracle=synthetic``) within a budget, with a bound that proves it."""

from dataclasses import dataclass

import numpy as np

from qra_bo.oracle.synthetic import FLOOR, INTERACTION, KNEE, Landscape, phi
from qra_bo.space import CostTable, FloatArray, IntArray
from qra_bo.space.knapsack import solve_knapsack

_BISECTIONS = 8


@dataclass(frozen=True)
class Optimum:
    """The best row found (``2 L``), its true loss, and a proven lower bound on every row that fits."""

    row: IntArray
    loss: float
    bound: float


def planted_parts(landscape: Landscape) -> tuple[FloatArray, FloatArray]:
    """Return the sensitivity that adapters of every rank leave, ``L x F x R``, and the task they miss, ``L x R``."""
    ranks = np.array(landscape.space.ranks, dtype=np.float64)[None, :]
    return landscape.quantization_sensitivity[:, :, None] * landscape.kept(ranks)[:, None, :], landscape.missed(ranks)


def true_losses(landscape: Landscape, rows: IntArray) -> FloatArray:
    """Return the loss of ``n x 2 L`` index rows at the end of high fidelity, without noise, ``n``."""
    n = landscape.space.n_units
    left, unlearned = planted_parts(landscape)
    q, r, units = rows[:, :n], rows[:, n:], np.arange(n)
    missed: FloatArray = unlearned[units, r].sum(axis=1)
    return FLOOR + phi(left[units, q, r].sum(axis=1)) + missed


def optimum(landscape: Landscape, costs: CostTable, budget_bytes: int) -> Optimum:
    """Return the best allocation in the budget, and a bound on every other.

    For a slope ``s`` of ``phi`` the knapsack over ``s x sensitivity left + task missed``, less the conjugate of ``phi``
    at ``s``, bounds every loss from below; bisection on ``s`` makes the bound tight.

    Raises:
        BudgetError: If nothing fits.
    """
    n, low, high = landscape.space.n_units, 0.0, KNEE
    bound, found = -np.inf, np.zeros((0, 2 * n), dtype=np.int64)
    left, unlearned = planted_parts(landscape)
    for _ in range(_BISECTIONS):
        x = (low + high) / 2
        values = (1.0 + 2.0 * INTERACTION * x) * left + unlearned[:, None, :]
        row = solve_knapsack(values, costs, budget_bytes)
        cells = (np.arange(n), row[:n], row[n:])
        bound = max(bound, FLOOR + float(values[cells].sum()) - INTERACTION * x**2)
        found = np.vstack([found, row])
        low, high = (x, high) if left[cells].sum() > x else (low, x)
    losses = true_losses(landscape, found)
    best = int(losses.argmin())
    return Optimum(found[best], float(losses[best]), bound)
