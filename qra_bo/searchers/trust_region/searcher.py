"""Stage 2 of the published method: Bayesian optimisation in a trust region (Eqs. 8-13)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured.observations import Observations, row_of
from qra_bo.searchers.trust_region.functions import gp_log_ei
from qra_bo.searchers.trust_region.region import TrustRegion
from qra_bo.searchers.trust_region.utility import published_utility, unit_importance
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import IntArray
from qra_bo.space.encoding import embed
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.space.neighbourhood import neighbours_within
from qra_bo.trials import Fidelity, Proposal, Trial
from qra_bo.utils.errors import BudgetError, ConfigError
from surrogates.gp import believe, fit_gp


class TrustRegionBO:
    """A Matern GP over psi(C), LogEI over the feasible allocations within a few edits of the best one.

    Args:
        problem: What is searched.
        variant: ``"published"`` maximises Eq. 8's utility; ``"loss"`` minimises the loss under the budget.
        alpha: Weight of performance in Eq. 8.
        n_initial: Random feasible allocations evaluated first, less those that were told.
        radius: Edits admitted at the start.
        largest_radius: Cap of the radius.
        tolerance: Eq. 13: it stops when no expected improvement is larger (in units of the objective).
        max_candidates: Most neighbours scored.

    Raises:
        ConfigError: If an option is out of its range.
    """

    name = "trust_region"

    def __init__(self, problem: SearchProblem, *, variant: Literal["published", "loss"] = "published",
                 alpha: float = 0.6, n_initial: int = 5, radius: int = 2, largest_radius: int = 4,
                 tolerance: float = 1e-4, max_candidates: int = 4000) -> None:
        problems = []
        if variant not in ("published", "loss"):
            problems.append(f"variant must be 'published' or 'loss'; got {variant!r}")
        if not 0 <= alpha <= 1:
            problems.append(f"alpha must lie in [0, 1]; got {alpha}")
        if not 1 <= radius <= largest_radius:
            problems.append(f"radius must lie between 1 and largest_radius ({largest_radius}); got {radius}")
        if n_initial < 2 or max_candidates < 1 or tolerance < 0:
            problems.append("n_initial must be at least 2, max_candidates at least 1 and tolerance at least 0; got "
                            f"{n_initial}, {max_candidates} and {tolerance}")
        if problems:
            raise ConfigError(problems)
        self._problem, self._variant, self._alpha = problem, variant, alpha
        self._n_initial, self._tolerance, self._max_candidates = n_initial, tolerance, max_candidates
        self._region = TrustRegion(radius, 1, largest_radius, radius)
        self._rng = problem.rng("trust_region")
        self._importance = unit_importance(problem.profile)
        self._seen = Observations(problem)

    @property
    def region(self) -> TrustRegion:
        return self._region

    def ask(self, n: int) -> list[Proposal]:
        """Up to ``n`` proposals; none once no improvement beyond ``tolerance`` is expected.

        Raises:
            BudgetError: If nothing fits into the budget.
        """
        proposals = []
        for _ in range(n):
            row = self._next_row()
            if row is None:
                break
            proposals.append(Proposal(self._seen.propose(row), Fidelity.HIGH, "trust_region"))
        return proposals

    def tell(self, evaluations: Sequence[Trial]) -> None:
        proposed = [e for e in self._seen.tell(evaluations) if e.stage == "trust_region"]
        if not proposed:
            return
        rows, losses = self._known()
        best = rows[int(np.argmax(self._objective(rows, losses)))].tolist() if len(rows) else None
        for evaluation in proposed:
            row = self._problem.space.encode(evaluation.allocation).tolist()
            self._region = self._region.update(evaluation.loss is not None and row == best)

    def _next_row(self) -> IntArray | None:
        known, losses = self._known()
        if len(known) + len(self._seen.pending) < self._n_initial or len(np.unique(losses)) < 2:
            return self._random_row()
        return self._best_neighbour(known, self._objective(known, losses))

    def _known(self) -> tuple[IntArray, FloatArray]:
        """Rows on the ladders that fit (``n x 2 L``) and their losses (``n``)."""
        rows, losses, _ = self._seen.arrays()
        whole = (rows == np.floor(rows)).all(axis=1)
        fits = np.zeros(len(rows), dtype=bool)
        fits[whole] = self._problem.costs.feasible(rows[whole].astype(np.int64), self._problem.budget_bytes)
        return rows[fits].astype(np.int64), losses[fits]

    def _objective(self, rows: IntArray, losses: FloatArray) -> FloatArray:
        """What is maximised, ``n``."""
        if self._variant == "loss":
            return -losses
        return published_utility(losses, self._problem.costs.totals(rows), self._alpha)

    def _best_neighbour(self, rows: IntArray, objective: FloatArray) -> IntArray | None:
        problem = self._problem
        centre = rows[int(np.argmax(objective))]
        region = self._region
        while True:
            candidates = neighbours_within(problem.space, centre, region.radius, costs=problem.costs,
                                           budget_bytes=problem.budget_bytes, rng=self._rng, cap=self._max_candidates)
            candidates = candidates[[tuple(r) not in self._seen.tried for r in candidates.tolist()]]
            if len(candidates):
                break
            if region.radius == region.largest:
                return None
            region = replace(region, radius=region.radius + 1)
        train = torch.from_numpy(embed(rows, problem.space, self._importance))
        y = torch.from_numpy(objective)[:, None]
        if float(y.max() - y.min()) == 0.0:
            return row_of(candidates, 0)
        model = fit_gp(train, y)
        pending = np.array(list(self._seen.pending), dtype=np.int64).reshape(-1, rows.shape[1])
        if len(pending):
            # Pending points count as if they came out as predicted, so that a batch spreads.
            model = believe(model, torch.from_numpy(embed(pending, problem.space, self._importance)))
        scores = gp_log_ei(model, torch.from_numpy(embed(candidates, problem.space, self._importance)),
                           float(y.max()), maximize=True)
        best = int(scores.argmax())
        if float(scores[best].exp()) < self._tolerance:
            return None
        return row_of(candidates, best)

    def _random_row(self) -> IntArray | None:
        """The best of a random additive objective: a random allocation on the edge of the budget."""
        values = self._rng.standard_normal(self._problem.costs.shape)
        tried = np.array(list(self._seen.tried), dtype=np.int64).reshape(-1, 2 * self._problem.space.n_units)
        try:
            return solve_knapsack(values, self._problem.costs, self._problem.budget_bytes, forbid=tried, rel_gap=1e-2)
        except BudgetError:
            if len(tried):
                return None
            raise
