"""Peers without a model: uniform choices, blind mixes, hill climbing, and bits by sensitivity before ranks."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import ObservingSearcher
from qra_bo.sensitivity.importance import (
    Repair,
    fidelity_importance,
    plasticity_importance,
    shrunk_sensitivity,
    warm_start,
)
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import CostTable, FloatArray, IntArray, PhaseCost
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.space.neighbourhood import neighbours_within
from qra_bo.space.space import wider_units
from qra_bo.utils.errors import BudgetError, ConfigError

_FURTHEST = 3
_MOST = 5000
TRIES = 200
MEASURES: Mapping[str, Callable[[SensitivityProfile], FloatArray]] = {
    "rise": lambda profile: profile.quantization_sensitivity, "divergence": lambda profile: profile.quantization_kl,
    "believed": shrunk_sensitivity}
"""Measures of quantisation sensitivity: the loss's rise (the published I_q), the divergence from the 16-bit model, and
qra_bo's estimate from both."""


class UniformSearch(ObservingSearcher):
    """Every uniform choice of the ladders that fits, the most bytes first."""

    name, stage = "uniform", "global"

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        n, f, r = problem.costs.shape
        rows = np.array([[i] * n + [j] * n for i in range(f) for j in range(r)], dtype=np.int64)
        rows = rows[problem.costs.feasible(rows, problem.budget_bytes)]
        self._left = iter(rows[np.argsort(-problem.costs.totals(rows), kind="stable")])

    def _next(self) -> IntArray | None:
        return self._first_new(self._left)


class BlindMix(ObservingSearcher):
    """Fractional choices with units drawn at random: one rank, and as many units at the wider of two neighbouring
    formats as fit, the rest at the other. It knows nothing of the units."""

    name, stage = "blind_mix", "global"

    def _next(self) -> IntArray | None:
        return self._first_new(row for row in (self._draw() for _ in range(TRIES)) if row is not None)

    def _draw(self) -> IntArray | None:
        """Return the row of the most bits that fits at a random rank in a random order of units."""
        n, formats, ranks = self._problem.costs.shape
        wider = wider_units(self._rng.permutation(n).tolist())
        rank = int(self._rng.integers(ranks))
        rows = np.vstack([np.hstack([np.minimum(low + wider, formats - 1), np.full_like(wider, rank, dtype=np.int64)])
                          for low in range(max(1, formats - 1))])
        fits = self._problem.costs.feasible(rows, self._problem.budget_bytes)
        return np.asarray(rows[fits][-1]) if fits.any() else None


class HillClimb(ObservingSearcher):
    """Random neighbours of the best known allocation (at first Eq. 6's): 2 edits away, then up to 3.

    Raises ``ProfileError`` if the profile holds no I_r, and ``BudgetError`` if even the lowest allocation does not fit.
    """

    name, stage = "hill_climb", "global"

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        i_q = fidelity_importance(problem.profile)
        i_r = plasticity_importance(problem.profile, problem.space.ranks[-1])
        repair = Repair(problem.costs, problem.budget_bytes, i_q, i_r)
        self._start = repair(warm_start(problem.space, problem.profile))
        self._centre: IntArray | None = None
        self._untried: Iterator[IntArray] = iter(())

    def _next(self) -> IntArray | None:
        rows, losses = self._known()
        centre = rows[int(losses.argmin())] if len(rows) else self._start
        if not len(rows) and self._first_new([centre]) is not None:
            return centre
        if self._centre is None or not np.array_equal(centre, self._centre):
            self._centre = centre
            around = (neighbours_within(self._problem.space, centre, radius, costs=self._problem.costs,
                                        budget_bytes=self._problem.budget_bytes, rng=self._rng, cap=_MOST)
                      for radius in range(2, _FURTHEST + 1))
            self._untried = (row for rows in around for row in self._rng.permutation(rows))
        return self._first_new(self._untried)


class SequentialSearch(ObservingSearcher):
    """The usual pipeline: bits before ranks.

    Bits come from an exact knapsack on I_q for each uniform rank. Then, for the bits of the best of these, then of the
    next, ranks come from an exact knapsack on I_r in the rest of the budget.

    ``quantization_sensitivity`` is the measure of I_q, one of ``MEASURES``. Raises ``ConfigError`` if there is
    no such measure, and ``ProfileError`` if the profile holds no I_r.
    """

    name, stage = "sequential", "global"

    def __init__(self, problem: SearchProblem, quantization_sensitivity: str = "rise") -> None:
        super().__init__(problem)
        if quantization_sensitivity not in MEASURES:
            raise ConfigError(f"quantization_sensitivity must be one of {', '.join(MEASURES)}; got "
                              f"{quantization_sensitivity!r}")
        self._sensitivity = MEASURES[quantization_sensitivity](problem.profile)
        gain, ranks = problem.profile.require_rank_sensitivity(), np.array(problem.space.ranks)
        self._gain = gain[:, np.minimum(ranks, gain.shape[1]) - 1]
        self._uniform = iter(self._bits_for_uniform_ranks())

    def _next(self) -> IntArray | None:
        row = self._first_new(self._uniform)
        if row is not None or len(self._seen.pending):
            return row
        rows, losses = self._known()
        refined = (self._ranks_for(rows[i]) for i in np.argsort(losses, kind="stable"))
        return self._first_new(found for found in refined if found is not None)

    def _bits_for_uniform_ranks(self) -> Iterator[IntArray]:
        n = self._problem.space.n_units
        for index in reversed(range(len(self._problem.space.ranks))):
            row = self._solved(self._sensitivity[:, :, None], np.s_[:, :, index:index + 1])
            if row is not None:
                yield np.concatenate([row[:n], np.full(n, index, dtype=np.int64)])

    def _ranks_for(self, row: IntArray) -> IntArray | None:
        n = self._problem.space.n_units
        found = self._solved(-self._gain[:, None, :], np.s_[np.arange(n)[:, None], row[:n, None]])
        return None if found is None else np.concatenate([row[:n], found[n:]])

    def _solved(self, values: FloatArray, choices: Any) -> IntArray | None:
        """Solve a knapsack over a part of the ``L x F x R`` choices; ``None`` if nothing fits."""
        costs = CostTable(tuple(PhaseCost(p.name, p.fixed, p.unit[choices], p.spike[choices])
                                for p in self._problem.costs.phases))
        try:
            return solve_knapsack(values, costs, self._problem.budget_bytes)
        except BudgetError:
            return None


class SequentialBits(SequentialSearch):
    """The first half of the usual pipeline: bits by an exact knapsack on I_q for each uniform rank, and no more."""

    name = "sequential_bits"

    def _next(self) -> IntArray | None:
        return self._first_new(self._uniform)
