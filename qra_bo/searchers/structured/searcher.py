"""The default search: an additive surrogate learned on top of the sensitivities, solved exactly under the budget."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from botorch.acquisition.analytic import LogExpectedImprovement

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import ObservingSearcher, TrustRegion
from qra_bo.searchers.rates.model import load_rates, of_training
from qra_bo.searchers.structured.features import build_components, prior_tables
from qra_bo.space import Allocation, IntArray
from qra_bo.space.lagrangian import Region, solve_relaxed
from qra_bo.trials import Trial
from qra_bo.utils.errors import ConfigError
from surrogates.structured import Design, StructuredModel

REL_GAP = 1e-3
"""Relative gap at which knapsacks may stop."""
KNOWN = 0.3
"""Scales of the parts about learned rates, as a share of those about nothing."""
LEAST_CHECKED = 5
"""Observations below which rank correlation and coverage say nothing."""


class StructuredSearch(ObservingSearcher):
    """Posterior samples of a structured surrogate solved as knapsacks; BoTorch's LogEI chooses among them.

    The incumbent is the evaluated allocation with the best posterior mean, so that one lucky trial does not hold the
    search. Uniform baselines train the surrogate like any other allocation. Only high-fidelity trials are asked for and
    learned from. Raises ``ConfigError`` if an option is out of its range.

    Args:
        draws: Posterior samples solved for every global proposal, besides the posterior mean.
        temperatures: Factors on the deviation of the samples from the posterior mean, in turn.
        rates: Learned exchange rates, a file or the name of one that comes with the package: at the length of training
            that is minimised they are the surrogate's prior mean, whose optimum is the first proposal; ``None``: the
            prior mean is constant, and the first proposals assume rates (``features.prior_tables``).

    Attributes:
        chance_of_gain: See ``Forecasting``.
        region: Trust region of the global proposals, in units whose choice may change.
    """

    name, stage = "structured", "global"

    def __init__(self, problem: SearchProblem, *, draws: int = 6, temperatures: Sequence[float] = (1.0, 0.5),
                 rates: str | None = None) -> None:
        if draws < 1 or min(temperatures, default=-1.0) < 0:
            raise ConfigError("structured needs draws >= 1, and temperatures that are at least 0; got "
                              f"{draws} and {temperatures}")
        super().__init__(problem)
        self._draws, self._temperatures = draws, temperatures
        parts = build_components(problem)
        if rates is None:
            self._design = Design(parts)
            self._prior = prior_tables(problem)
        else:  # what the parts are left to explain is what the learned rates do not
            steps = problem.high_steps if problem.objective_steps is None else problem.objective_steps
            centre = of_training(load_rates(rates), problem, steps).table(problem)
            self._design = Design([replace(c, scale=KNOWN * c.scale) for c in parts], torch.from_numpy(centre))
            self._prior = [centre]
        n_units = problem.space.n_units
        self.region = TrustRegion(max(2, n_units // 2), n_units, smallest=2, factor=1.5)
        self._model: StructuredModel | None = None
        self.chance_of_gain: float | None = None

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn of finished trials; the region grows where a global proposal improves on the least loss."""
        _, before, _ = self._seen.arrays()
        best = float(before.min()) if len(before) else np.inf
        for trial in self._seen.tell(trials):
            improved = trial.loss is not None and trial.loss < best
            best = min(best, math.inf if trial.loss is None else trial.loss)
            if trial.stage == self.stage and len(before) >= 2:
                self.region.update(improved)
            self._model = None

    def recommend(self) -> list[Allocation]:
        """See ``Recommending``: by posterior mean."""
        model = self._fitted()
        return [] if model is None else [self._problem.space.decode(row) for row in self._ranked(model)]

    def surrogate_check(self) -> dict[str, Any] | None:
        """See ``SelfChecking``."""
        model = self._fitted()
        return None if model is None or len(model.y) < LEAST_CHECKED else model.held_out()

    def _next(self) -> IntArray | None:
        self.chance_of_gain = None
        while self._prior:
            row = self._solve(self._prior.pop(0), REL_GAP, forbid=False)
            if row is None or len(self._seen.fresh(row[None])):
                return row
        model, pending = self._fitted(), self._seen.pending
        if model is None:
            return self._solve(self._rng.standard_normal(self._problem.costs.shape), REL_GAP)
        if len(pending):
            model = model.condition_on_pending(torch.from_numpy(pending).double())
        candidates = self._seen.fresh(self._candidates(model))
        if not len(candidates):
            if (row := self._solve(model.mean_table().numpy(), REL_GAP)) is None:
                return None
            candidates = row[None]
        means = model.latent(model.rows)[0]
        acquisition = LogExpectedImprovement(model, best_f=float(means.min()), maximize=False)
        with torch.no_grad():
            chosen = int(acquisition(torch.from_numpy(candidates).double()[:, None, :]).argmax())
        mean, sd = model.latent(torch.from_numpy(candidates[chosen:chosen + 1]))
        incumbent = float(means[:len(means) - len(pending)].min())  # a pending gain may not come true
        needed = incumbent - math.sqrt(2.0) * model.scales["noise"] - float(mean)
        self.chance_of_gain = float(torch.special.ndtr(needed / sd))
        return np.asarray(candidates[chosen])

    def _candidates(self, model: StructuredModel) -> IntArray:
        """Solve posterior samples exactly, everywhere and within the trust region around the incumbent, ``m x 2 L``.

        The solution of the posterior mean comes first.
        """
        ranked = self._ranked(model)
        region = Region(ranked[0], self.region.radius) if len(ranked) else None
        tables: list[tuple[torch.Tensor, Region | None]] = [(model.mean_table(), None)]
        for draw in range(self._draws):
            temperature = self._temperatures[draw // 2 % len(self._temperatures)]
            tables.append((model.sample_tables(self._rng, 1, temperature)[0], region if draw % 2 else None))
        return np.stack([solve_relaxed(table.numpy(), self._problem.costs, self._problem.budget_bytes, where)
                         for table, where in tables])

    def _fitted(self) -> StructuredModel | None:
        """Return the surrogate of what is known; ``None`` before 2 losses."""
        rows, losses, counts = map(torch.from_numpy, self._seen.arrays())
        if self._model is None and len(rows) >= 2:
            self._model = StructuredModel(self._design, rows, losses, counts)
        return self._model

    def _ranked(self, model: StructuredModel) -> IntArray:
        """Return evaluated rows on the ladders and within the budget, ``m x 2 L``, the best posterior mean first."""
        whole, _ = self._known()
        if not len(whole):
            return whole
        return np.asarray(whole[np.argsort(model.latent(torch.from_numpy(whole))[0].numpy(), kind="stable")])
