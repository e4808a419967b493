"""First allocations of Stage 1 and their variation; random allocations that use up the budget."""

import numpy as np
import numpy.typing as npt

from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.importance import Repair, warm_start
from qra_bo.space import FloatArray, IntArray
from qra_bo.space.neighbourhood import atomic_neighbours, ladder_tops
from qra_bo.utils.errors import BudgetError

_JITTER = (0.1, 0.4)
"""Chance that a coordinate moves: of the first jittered allocation, and of the last."""


def warm_population(problem: SearchProblem, repair: Repair, n: int, rng: np.random.Generator) -> IntArray:
    """Return Eq. 6's row and jittered copies of it, all repaired, ``n x 2 L`` (repeats possible).

    Each copy moves coordinates by one ladder step up or down, the later ones more of them. Raises ``BudgetError`` if
    even the lowest allocation does not fit.
    """
    centre = warm_start(problem.space, problem.profile)
    rows = [repair(centre)]
    tops = ladder_tops(problem.space)
    for chance in np.linspace(*_JITTER, n - 1):
        moves = np.where(rng.random(len(centre)) < chance, rng.choice([-1, 1], size=len(centre)), 0)
        rows.append(repair(np.clip(centre + moves, 0, tops)))
    return np.stack(rows)


def random_near_budget(problem: SearchProblem, rng: np.random.Generator) -> IntArray:
    """Draw a row that fits, ``2 L``: as far up as a random path of single ladder steps stays in the budget.

    Every coordinate climbs at its own random rate, and formats as a whole at another than ranks, so that averages
    differ as much as single units do. Raises ``BudgetError`` if even the lowest allocation does not fit.
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


_FLOOR = 0.02
"""Added to importances: min-max scaling makes one of them 0, so that its unit would never move."""


class Operators:
    """The variations of Stage 1; all give rows that fit the budget, or ``None`` where repair finds none.

    Args:
        problem: Space, costs and budget.
        repair: Eqs. 4-5.
        importance_q: I_q, ``L``, in [0, 1].
        importance_r: I_r, ``L``, in [0, 1].
        gamma: Exponent of the importance in the odds of mutating a unit.
    """

    def __init__(self, problem: SearchProblem, repair: Repair, importance_q: FloatArray, importance_r: FloatArray,
                 gamma: float) -> None:
        self._problem, self._repair = problem, repair
        self._tops = ladder_tops(problem.space)
        self._odds = np.concatenate([importance_q + _FLOOR, importance_r + _FLOOR]) ** gamma

    def child(self, first: IntArray, second: IntArray, rng: np.random.Generator) -> IntArray | None:
        """Cross two rows (``2 L``), then apply one of the three mutations, each as likely."""
        crossed = self.crossover(first, second, rng)
        mutation = (self.guided, self.coupled, self.atomic)[int(rng.integers(3))]
        return mutation(crossed, rng)

    def crossover(self, first: IntArray, second: IntArray, rng: np.random.Generator) -> IntArray:
        """Take every coordinate from either parent, as likely; the result may not fit."""
        return np.where(rng.random(len(first)) < 0.5, first, second)

    def guided(self, row: IntArray, rng: np.random.Generator) -> IntArray | None:
        """Move a coordinate drawn with odds importance ** gamma one step up or down, then repair."""
        coordinate = self._draw(self._tops > 0, rng)
        if coordinate is None:
            return self._repaired(row)
        steps = [s for s in (-1, 1) if 0 <= row[coordinate] + s <= self._tops[coordinate]]
        moved = row.copy()
        moved[coordinate] += steps[int(rng.integers(len(steps)))]
        return self._repaired(moved)

    def coupled(self, row: IntArray, rng: np.random.Generator) -> IntArray | None:
        """Move a coordinate drawn likewise one step up, paid for by repair of the others."""
        coordinate = self._draw(row < self._tops, rng)
        if coordinate is None:
            return self._repaired(row)
        moved = row.copy()
        moved[coordinate] += 1
        return self._repaired(moved, frozenset([coordinate]))

    def atomic(self, row: IntArray, rng: np.random.Generator) -> IntArray | None:
        """Take one of the one-step neighbours, each as likely, then repair."""
        neighbours = atomic_neighbours(self._problem.space, row)
        return self._repaired(neighbours[int(rng.integers(len(neighbours)))] if len(neighbours) else row)

    def _draw(self, allowed: npt.NDArray[np.bool_], rng: np.random.Generator) -> int | None:
        """Draw a coordinate: formats or ranks with equal chance where both are allowed, then by importance."""
        n = self._problem.space.n_units
        halves = [h for h in (slice(0, n), slice(n, 2 * n)) if allowed[h].any()]
        if not halves:
            return None
        half = halves[int(rng.integers(len(halves)))]
        odds = self._odds[half] * allowed[half]
        return half.start + int(rng.choice(n, p=odds / odds.sum()))

    def _repaired(self, row: IntArray, keep: frozenset[int] = frozenset()) -> IntArray | None:
        try:
            return self._repair(row, keep)
        except BudgetError:
            return None
