"""First allocations: Eq. 6's warm start with jitter, and random ones that use up the budget."""

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.repair import Repair
from qra_bo.sensitivity.scaling import warm_start
from qra_bo.space import IntArray
from qra_bo.space.neighbourhood import ladder_tops
from qra_bo.utils.errors import BudgetError

_JITTER = (0.1, 0.4)
"""Chance that a coordinate moves: of the first jittered allocation, and of the last."""


def warm_population(problem: SearchProblem, repair: Repair, tau: str, n: int, rng: np.random.Generator) -> IntArray:
    """Return Eq. 6's row and jittered copies of it, all repaired, ``n x 2 L`` (repeats possible).

    Each copy moves coordinates by one ladder step up or down, the later ones more of them.

    Raises:
        BudgetError: If even the lowest allocation does not fit.
    """
    centre = warm_start(problem.space, problem.profile, tau)
    rows = [repair(centre)]
    tops = ladder_tops(problem.space)
    for chance in np.linspace(*_JITTER, n - 1):
        moves = np.where(rng.random(len(centre)) < chance, rng.choice([-1, 1], size=len(centre)), 0)
        rows.append(repair(np.clip(centre + moves, 0, tops)))
    return np.stack(rows)


def random_near_budget(problem: SearchProblem, rng: np.random.Generator) -> IntArray:
    """Draw a row that fits, ``2 L``: as far up as a random path of single ladder steps stays in the budget.

    Every coordinate climbs at its own random rate, and formats as a whole at another than ranks, so that averages
    differ as much as single units do.

    Raises:
        BudgetError: If even the lowest allocation does not fit.
    """
    tops = ladder_tops(problem.space)
    n = problem.space.n_units
    if not problem.costs.feasible(np.zeros((1, 2 * n), dtype=np.int64), problem.budget_bytes)[0]:
        raise BudgetError(f"even the lowest bits and ranks do not fit into {problem.budget_bytes} bytes; raise the "
                          "budget, or admit lower bits or ranks")
    rates = np.exp(rng.normal(size=2 * n)) * np.repeat(np.exp(2.0 * rng.normal(size=2)), n)
    coordinate = np.repeat(np.arange(2 * n), tops)
    waits = rng.exponential(size=len(coordinate)) / rates[coordinate]
    starts = np.concatenate([[0], np.cumsum(tops)[:-1]])
    times = np.cumsum(waits)
    times -= np.concatenate([[0.0], times])[starts[coordinate]]
    path = coordinate[np.argsort(times, kind="stable")]
    fits, above = 0, len(path) + 1
    while above - fits > 1:
        middle = (fits + above) // 2
        row = np.bincount(path[:middle], minlength=2 * n)
        if problem.costs.feasible(row[None, :], problem.budget_bytes)[0]:
            fits = middle
        else:
            above = middle
    return np.bincount(path[:fits], minlength=2 * n).astype(np.int64)
