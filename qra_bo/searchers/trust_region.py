"""Stage 2 of the published method: Bayesian optimisation in a trust region (Eqs. 8-13)."""

from collections.abc import Sequence

import numpy as np
import torch
from botorch.acquisition.analytic import LogExpectedImprovement

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import ObservingSearcher, TrustRegion
from qra_bo.sensitivity.importance import min_max, scaled_by_value
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import FloatArray, IntArray, SearchSpace
from qra_bo.space.cost import pareto_front
from qra_bo.space.neighbourhood import neighbours_within
from qra_bo.trials import Trial
from qra_bo.utils.errors import ConfigError
from surrogates.gp import condition_on_pending, fit_gp

_BATCH = 1024
"""Candidates scored at once, which bounds memory."""


class TrustRegionBO(ObservingSearcher):
    """A Matern GP over psi(C); BoTorch's LogEI (Eq. 10) over the feasible allocations near the best one.

    Raises ``ConfigError`` if an option is out of its range.

    Args:
        alpha: Weight of performance in Eq. 8.
        n_initial: Random feasible allocations evaluated first, less the uniform baselines.
        radius: Edits admitted at the start.
        largest_radius: Cap of the radius.
        tolerance: Eq. 13: it stops when no expected improvement is larger (in units of the objective).
        max_candidates: Most neighbours scored.

    Attributes:
        region: The present trust region, in edits (Eq. 11).
    """

    name = stage = "trust_region"

    def __init__(self, problem: SearchProblem, *, alpha: float = 0.6, n_initial: int = 5, radius: int = 2,
                 largest_radius: int = 4, tolerance: float = 1e-4, max_candidates: int = 4000) -> None:
        if not (0 <= alpha <= 1 <= radius <= largest_radius and n_initial >= 2 and max_candidates >= 1
                and tolerance >= 0):
            raise ConfigError("trust_region needs 0 <= alpha <= 1 <= radius <= largest_radius, n_initial >= 2, "
                              f"max_candidates >= 1 and tolerance >= 0; got {alpha}, {radius}, {largest_radius}, "
                              f"{n_initial}, {max_candidates} and {tolerance}")
        super().__init__(problem)
        self._alpha, self._n_initial = alpha, n_initial
        self._tolerance, self._max_candidates = tolerance, max_candidates
        self.region = TrustRegion(radius, largest_radius)
        self._importance = unit_importance(problem.profile)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn of finished trials; the region grows where a proposal is the new best, and shrinks else."""
        proposed = [trial for trial in self._seen.tell(trials) if trial.stage == self.stage]
        if not proposed:
            return
        rows, losses = self._known()
        best = rows[int(np.argmax(self._objective(rows, losses)))].tolist() if len(rows) else None
        for trial in proposed:
            row = self._problem.space.encode(trial.allocation).tolist()
            self.region.update(trial.loss is not None and row == best)

    def _next(self) -> IntArray | None:
        known, losses = self._known()
        if len(known) + len(self._seen.pending) < self._n_initial or len(np.unique(losses)) < 2:
            # A random additive objective: a random allocation on the edge of the budget.
            return self._solve(self._rng.standard_normal(self._problem.costs.shape), 1e-2)
        objective = self._objective(known, losses)
        centre = known[int(np.argmax(objective))]
        wider = (neighbours_within(self._problem.space, centre, radius, costs=self._problem.costs, rng=self._rng,
                                   budget_bytes=self._problem.budget_bytes, cap=self._max_candidates)
                 for radius in range(self.region.radius, self.region.largest + 1))
        candidates = next((found for found in map(self._seen.fresh, wider) if len(found)), None)
        if candidates is None:
            return None
        y = torch.from_numpy(objective)[:, None]
        if float(y.max() - y.min()) == 0.0:
            return np.asarray(candidates[0])
        model, pending = fit_gp(self._embedded(known), y), self._seen.pending
        if len(pending):
            model = condition_on_pending(model, self._embedded(pending))
        acquisition = LogExpectedImprovement(model, best_f=float(y.max()))
        with torch.no_grad():
            scores = torch.cat([acquisition(rows) for rows in torch.split(self._embedded(candidates)[:, None], _BATCH)])
        best = int(scores.argmax())
        return None if float(scores[best].exp()) < self._tolerance else np.asarray(candidates[best])

    def _objective(self, rows: IntArray, losses: FloatArray) -> FloatArray:
        """Return Eq. 8's utility, which is maximised, ``n``."""
        return published_utility(losses, self._problem.costs.totals(rows), self._alpha)

    def _embedded(self, rows: IntArray) -> torch.Tensor:
        return torch.from_numpy(embed(rows, self._problem.space, self._importance))


def unit_importance(profile: SensitivityProfile) -> FloatArray:
    """Return I = (I_q + I_r) / 2, ``L``: sensitivity to the lowest format and to the largest rank, min-max scaled.

    A profile without I_r gives I_q alone.
    """
    i_q = min_max(profile.quantization_sensitivity[:, 0])
    return i_q if profile.rank_sensitivity is None else (i_q + min_max(profile.rank_sensitivity[:, -1])) / 2


def published_utility(losses: FloatArray, memory: IntArray, alpha: float = 0.6) -> FloatArray:
    """Return Eq. 8's ``f = alpha P^ - (1 - alpha) M^``, ``n``, to be maximised.

    Performance (here: minus the loss) and memory are scaled by their extremes on the Pareto front of the ``n``
    points; points off it may leave [0, 1]. A front of one value scales to 0.
    """
    front = pareto_front(losses, memory)

    def scaled(values: FloatArray) -> FloatArray:
        low, high = values[front].min(), values[front].max()
        return (values - low) / (high - low) if high > low else np.zeros_like(values)

    return alpha * scaled(-losses) - (1 - alpha) * scaled(memory.astype(np.float64))


def embed(rows: IntArray, space: SearchSpace, importance: FloatArray) -> FloatArray:
    """psi(C) of ``n x 2 L`` rows (Eq. 9), ``n x (2 L + 2)``: scaled bits and ranks of every unit, and their means
    weighted with the importance I (``L``).
    """
    n = space.n_units
    s_q, s_r = scaled_by_value(rows, space)
    return np.hstack([s_q, s_r, s_q @ importance[:, None] / n, s_r @ importance[:, None] / n])
