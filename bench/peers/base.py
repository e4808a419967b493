"""Base of the peers: the feasibility filter, earlier proposals, and the first random ones."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.evolution.searcher import Archive
from qra_bo.searchers.evolution.variation import random_near_budget
from qra_bo.sensitivity.importance import Repair, fidelity_importance, plasticity_importance
from qra_bo.space import FloatArray, IntArray
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.space.neighbourhood import ladder_tops, neighbours_within
from qra_bo.trials import Fidelity, Proposal, Trial
from qra_bo.utils.errors import BudgetError

N_INITIAL = 10
"""Losses, uniform baselines included, from which a model-based peer stops drawing at random."""
RANDOM_TRIES = 50
NEAR_EDITS, NEAR_CAP = 2, 500


class Peer(ABC):
    """A method over index rows. What it suggests is repaired into the budget by Eqs. 4-5, as the published method's
    offspring are; where that was tried before, a random neighbour of it is taken instead.

    Args:
        problem: What is searched.
        n_initial: Losses, uniform baselines included, before which proposals are random ones that use up the budget.
    """

    name = ""

    def __init__(self, problem: SearchProblem, n_initial: int = N_INITIAL) -> None:
        self._problem, self._n_initial = problem, n_initial
        self._archive, self._rng = Archive(problem), problem.rng(self.name)
        self._seed = int(problem.rng(f"{self.name}.seed").integers(2**31))
        self._repair = Repair(problem.costs, problem.budget_bytes, fidelity_importance(problem.profile),
                              plasticity_importance(problem.profile, problem.space.ranks[-1]))
        self._tops = ladder_tops(problem.space)

    def ask(self, n: int) -> list[Proposal]:
        """Up to ``n`` new proposals; fewer once everything that fits was tried."""
        rows = []
        while len(rows) < n and (row := self._next()) is not None:
            rows.append(row)
        return [Proposal(self._problem.space.decode(row), Fidelity.HIGH, "global") for row in rows]

    def tell(self, evaluations: Sequence[Trial]) -> None:
        """Learn of finished evaluations."""
        self._archive.tell(evaluations)
        for e in evaluations:
            if e.fidelity is Fidelity.HIGH and e.spec.split == "validation" \
                    and self._problem.space.contains(e.allocation) and self._problem.fits(e.allocation):
                self._learn(self._problem.space.encode(e.allocation), e.loss)

    @abstractmethod
    def _suggest(self) -> IntArray:
        """A row (``2 L``) on the ladders that the method would look at next; it need not fit."""

    @abstractmethod
    def _learn(self, row: IntArray, loss: float | None) -> None:
        """A row that fits, with its loss; ``None`` where the evaluation failed."""

    @property
    def _known(self) -> tuple[IntArray, FloatArray]:
        """Rows that fit (``n x 2 L``) and their losses (``n``)."""
        rows, losses = self._archive.known(Fidelity.HIGH)
        fits = self._problem.costs.feasible(rows, self._problem.budget_bytes)
        return rows[fits], losses[fits]

    def _next(self) -> IntArray | None:
        if len(self._known[0]) >= self._n_initial:
            row = self._repair(self._suggest())
            if self._archive.claim(row, Fidelity.HIGH):
                return row
            near = neighbours_within(self._problem.space, row, NEAR_EDITS, costs=self._problem.costs,
                                     budget_bytes=self._problem.budget_bytes, rng=self._rng, cap=NEAR_CAP)
            for other in self._rng.permutation(near):
                if self._archive.claim(other, Fidelity.HIGH):
                    return np.asarray(other)
        return self._random()

    def _random(self) -> IntArray | None:
        """A random row that uses up the budget; where all that are drawn were tried, any that was not."""
        for _ in range(RANDOM_TRIES):
            row = random_near_budget(self._problem, self._rng)
            if self._archive.claim(row, Fidelity.HIGH):
                return row
        table = self._rng.standard_normal(self._problem.costs.shape)
        try:
            row = solve_knapsack(table, self._problem.costs, self._problem.budget_bytes, forbid=self._archive.seen)
        except BudgetError:
            return None
        return row if self._archive.claim(row, Fidelity.HIGH) else None
