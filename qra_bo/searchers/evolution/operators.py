"""Variation of allocations: importance-guided and budget-balanced mutation, uniform crossover, atomic edits."""

import numpy as np
import numpy.typing as npt

from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.sensitivity.repair import Repair
from qra_bo.space import IntArray
from qra_bo.space.neighbourhood import atomic_neighbours, ladder_tops
from qra_bo.utils.errors import BudgetError

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
