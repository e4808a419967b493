"""The default search: an additive surrogate learned on top of the sensitivities, solved exactly under the budget."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.priors import prior_file
from qra_bo.searchers.structured.features import build_components
from qra_bo.searchers.structured.observations import Observations, row_of, telling
from qra_bo.searchers.structured.prior_designs import LEAST_PRIOR, prior_tables
from qra_bo.searchers.structured.transfer import load_prior, with_prior
from qra_bo.searchers.trust_region.check import LEAST_CHECKED, check_fields
from qra_bo.searchers.trust_region.functions import log_expected_improvement
from qra_bo.searchers.trust_region.region import TrustRegion
from qra_bo.sensitivity.damages import BELIEVED, DAMAGES, unknown_damage
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import Allocation, IntArray
from qra_bo.space.knapsack import Region, solve_knapsack
from qra_bo.space.lagrangian import solve_relaxed
from qra_bo.trials import Fidelity, Proposal, Trial
from qra_bo.utils.errors import BudgetError, ConfigError
from surrogates.structured import Design, StructuredModel, StructuredSettings

GLOBAL = "global"


@dataclass(frozen=True, slots=True)
class StructuredOptions:
    """Options of ``StructuredSearch``.

    Args:
        n_prior: Proposals solved under assumed exchange rates of damage and gain, before any is learned; ``None``: see
            ``prior_designs.prior_share`` (without a limit on the cost its least).
        draws: Posterior draws solved for every global proposal, besides the posterior mean.
        temperatures: Factors on the deviation of the draws from the posterior mean, in turn.
        rel_gap: Relative gap at which knapsacks of posterior draws may stop (and, but for 0, after many nodes).
        most: Observations that the surrogate is conditioned on at most (see ``telling``).
        always_fitted: Up to so many observations its scales are fitted after every one; beyond, each time their number
            has grown by a twentieth of what goes beyond.
        prior: What earlier runs taught about the parts' scales, a file or the name of one that comes with the package;
            or ``None``.
        without: Parts of the surrogate to leave out, by their names in ``build_components``.
        damage: What the profile's damage is taken to be, see ``damage_of``.
        model: Settings of the surrogate.
    """

    n_prior: int | None = None
    draws: int = 6
    temperatures: tuple[float, ...] = (1.0, 0.5)
    rel_gap: float = 1e-3
    most: int = 500
    always_fitted: int = 150
    prior: str | None = None
    without: tuple[str, ...] = ()
    damage: str = BELIEVED
    model: StructuredSettings = field(default_factory=StructuredSettings)


class StructuredSearch:
    """Thompson samples of a structured surrogate solved as knapsacks, of which the largest LogEI is evaluated.

    The incumbent is the evaluated allocation with the best posterior mean, so that one lucky evaluation does not
    hold the search. Uniform choices told by the engine train the surrogate like any other. Only high-fidelity
    evaluations are asked for and learned from.

    Args:
        problem: What is searched.
        options: See ``StructuredOptions``.

    Raises:
        ConfigError: If an option is out of its range.
    """

    name = "structured"

    def __init__(self, problem: SearchProblem, options: StructuredOptions | None = None) -> None:
        self._options = options or StructuredOptions()
        _check(self._options)
        self._problem = problem
        self._rng = problem.rng("structured")
        self._seen = Observations(problem)
        parts = build_components(problem, self._options.without, self._options.damage)
        learned = {} if self._options.prior is None else load_prior(prior_file(self._options.prior))
        self._design = Design(with_prior(parts, learned))
        n_prior = self._options.n_prior
        self._prior = prior_tables(problem, LEAST_PRIOR if n_prior is None else n_prior, self._options.damage)
        n_units = problem.space.n_units
        self._region = TrustRegion(max(2, n_units // 2), 2, n_units, max(2, n_units // 2), factor=1.5)
        self._model: StructuredModel | None = None
        self._scaled: tuple[StructuredModel, int] | None = None

    @property
    def region(self) -> TrustRegion:
        """Trust region of the global proposals, in units whose choice may change."""
        return self._region

    def ask(self, n: int) -> list[Proposal]:
        """Up to ``n`` proposals; fewer once every allocation that fits has been tried.

        Raises:
            BudgetError: If nothing fits into the budget.
        """
        proposals = []
        for _ in range(n):
            found = self._next()
            if found is None:
                break
            proposals.append(found)
        return proposals

    def tell(self, evaluations: Sequence[Trial]) -> None:
        _, before, _ = self._seen.arrays()
        new = self._seen.tell(evaluations)
        best = float(before.min()) if len(before) else np.inf
        for evaluation in new:
            improved = evaluation.loss is not None and evaluation.loss < best
            if improved and evaluation.loss is not None:
                best = evaluation.loss
            if evaluation.stage == GLOBAL and len(before) >= 2:
                self._region = self._region.update(improved)
        if new:
            self._model = None

    def recommend(self) -> list[Allocation]:
        """See ``Recommending``: by posterior mean."""
        rows, losses, counts = self._kept()
        if len(rows) < 2:
            return []
        self._model = self._model or self._learned(rows, losses, counts)
        return [self._problem.space.decode(row) for row in self._ranked(self._model)]

    def surrogate_check(self) -> dict[str, Any] | None:
        """See ``SelfChecking``; the surrogate's scales are those fitted to all observations that it keeps."""
        rows, losses, counts = self._kept()
        return check_fields(self._model_of(rows, losses, counts).held_out()) if len(rows) >= LEAST_CHECKED else None

    def predict(self, rows: IntArray) -> tuple[FloatArray, FloatArray] | None:
        """Posterior mean and deviation of the loss of ``m x 2 L`` rows, each ``m``; ``None`` before 2 losses."""
        model = self._fitted()
        if model is None:
            return None
        mean, sd = model.predict(torch.from_numpy(rows))
        return mean.numpy(), sd.numpy()

    def _next(self) -> Proposal | None:
        while self._prior:
            row = self._solve(self._prior.pop(0), None)
            if row is None:
                return None
            if tuple(row.tolist()) not in self._seen.tried:
                return self._new(row)
        model = self._fitted()
        if model is None:
            row = self._solve(self._rng.standard_normal(self._problem.costs.shape), None, forbid=True)
            return None if row is None else self._new(row)
        candidates = self._fresh(self._candidates(model, self._incumbent(model)))
        if len(candidates):
            return self._new(self._most_promising(model, candidates))
        row = self._solve(model.mean_table().numpy(), None, forbid=True)
        return None if row is None else self._new(row)

    def _new(self, row: IntArray) -> Proposal:
        return Proposal(self._seen.propose(row), Fidelity.HIGH, GLOBAL)

    def _most_promising(self, model: StructuredModel, candidates: IntArray) -> IntArray:
        """The row (``2 L``) of ``m x 2 L`` with the largest expected improvement on the best posterior mean."""
        mean, sd = (part.numpy() for part in model.latent(torch.from_numpy(candidates)))
        known, _ = model.latent(model.rows)
        return row_of(candidates, int(np.argmax(log_expected_improvement(mean, sd, float(known.min())))))

    def _fitted(self) -> StructuredModel | None:
        """The surrogate of what is known, with pending proposals at their predicted values: they leave its scales and
        its warp as they are."""
        rows, losses, counts = self._kept()
        if len(rows) < 2:
            return None
        self._model = self._model or self._learned(rows, losses, counts)
        pending = np.array(list(self._seen.pending), dtype=np.float64).reshape(-1, rows.shape[1])
        if not len(pending):
            return self._model
        believed = self._model.warp.inverse(self._model.latent(torch.from_numpy(pending))[0]).numpy()
        return self._model_of(np.vstack([rows, pending]), np.append(losses, believed),
                              np.append(counts, np.ones(len(pending))), self._model)

    def _kept(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """``Observations.arrays``, at most ``options.most`` of them."""
        rows, losses, counts = self._seen.arrays()
        kept = telling(losses, self._options.most)
        return rows[kept], losses[kept], counts[kept]

    def _learned(self, rows: FloatArray, losses: FloatArray, counts: FloatArray) -> StructuredModel:
        """The surrogate of ``n`` observations; of very many the scales are fitted now and then, and taken over else."""
        always, n = self._options.always_fitted, self._seen.size
        if self._scaled is not None and n > always:
            scaled, fitted_to = self._scaled
            if 20 * (n - fitted_to) < n - always and float(losses.min()) >= scaled.warp.best:
                return self._model_of(rows, losses, counts, scaled)
        model = self._model_of(rows, losses, counts)
        self._scaled = model, n
        return model

    def _model_of(self, rows: FloatArray, losses: FloatArray, counts: FloatArray,
                  like: StructuredModel | None = None) -> StructuredModel:
        return StructuredModel(self._design, torch.from_numpy(rows), torch.from_numpy(losses),
                               torch.from_numpy(counts), self._options.model, like)

    def _incumbent(self, model: StructuredModel) -> IntArray | None:
        """The evaluated row with the best posterior mean among those on the ladders and within the budget."""
        ranked = self._ranked(model)
        return row_of(ranked, 0) if len(ranked) else None

    def _ranked(self, model: StructuredModel) -> IntArray:
        """Rows of a model on the ladders and within the budget, ``m x 2 L``, the best posterior mean first."""
        rows = model.rows.numpy()
        whole: IntArray = rows[(rows == np.floor(rows)).all(axis=1)].astype(np.int64)
        whole = whole[self._problem.costs.feasible(whole, self._problem.budget_bytes)]
        if not len(whole):
            return whole
        mean, _ = model.latent(torch.from_numpy(whole))
        ranked: IntArray = whole[np.argsort(mean.numpy(), kind="stable")]
        return ranked

    def _candidates(self, model: StructuredModel, incumbent: IntArray | None) -> IntArray:
        """Exact optima of posterior draws, everywhere and within the trust region, ``m x 2 L``."""
        options, problem = self._options, self._problem
        region = None if incumbent is None else Region(incumbent, self._region.radius)
        tables: list[tuple[FloatArray, Region | None]] = [(model.mean_table().numpy(), None)]
        for draw in range(options.draws):
            temperature = options.temperatures[draw // 2 % len(options.temperatures)]
            tables.append((model.sample_tables(self._rng, 1, temperature)[0].numpy(), region if draw % 2 else None))
        return np.stack([solve_relaxed(table, problem.costs, problem.budget_bytes, where) for table, where in tables])

    def _fresh(self, rows: IntArray) -> IntArray:
        return rows[[tuple(r) not in self._seen.tried for r in rows.tolist()]]

    def _solve(self, table: FloatArray, region: Region | None, forbid: bool = False) -> IntArray | None:
        """Optimum of an additive table; ``None`` once every allocation that fits has been tried."""
        tried = np.array(list(self._seen.tried), dtype=np.int64).reshape(-1, 2 * self._problem.space.n_units)
        try:
            return solve_knapsack(table, self._problem.costs, self._problem.budget_bytes,
                                  forbid=tried if forbid else None, region=region, rel_gap=self._options.rel_gap)
        except BudgetError:
            if forbid and len(tried):
                return None
            raise


def _check(options: StructuredOptions) -> None:
    problems = []
    if options.most < 2 or options.always_fitted < 0:
        problems.append(f"most must be at least 2 and always_fitted at least 0; got {options.most} and "
                        f"{options.always_fitted}")
    if (options.n_prior or 0) < 0 or options.draws < 1:
        problems.append("n_prior must be at least 0 and draws at least 1; got "
                        f"{options.n_prior} and {options.draws}")
    if not options.temperatures or min(options.temperatures) < 0:
        problems.append(f"temperatures must be at least 0, and at least one; got {options.temperatures}")
    if options.damage not in DAMAGES:
        problems.append(unknown_damage(options.damage))
    if options.rel_gap < 0:
        problems.append(f"rel_gap must be at least 0; got {options.rel_gap}")
    if problems:
        raise ConfigError(problems)
