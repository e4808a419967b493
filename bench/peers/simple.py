"""Peers without a model: uniform choices alone, and bits by quantisation sensitivity with a uniform rank."""

from collections.abc import Sequence

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.baselines import SequentialSearch
from qra_bo.searchers.evolution.archive import Archive
from qra_bo.space import IntArray
from qra_bo.trials import Fidelity, Proposal, Trial


class UniformSearch:
    """Every uniform choice of the ladders that fits, the most bytes first."""

    name = "uniform"

    def __init__(self, problem: SearchProblem) -> None:
        self._problem, self._archive = problem, Archive(problem)
        n, f, r = problem.costs.shape
        rows = np.array([[i] * n + [j] * n for i in range(f) for j in range(r)], dtype=np.int64)
        rows = rows[problem.costs.feasible(rows, problem.budget_bytes)]
        order = np.argsort(-problem.costs.totals(rows), kind="stable")
        self._left: list[IntArray] = list(rows[order])

    def ask(self, n: int) -> list[Proposal]:
        """Up to ``n`` of those that are left."""
        found: list[Proposal] = []
        while self._left and len(found) < n:
            row = self._left.pop(0)
            if self._archive.claim(row, Fidelity.HIGH):
                found.append(Proposal(self._problem.space.decode(row), Fidelity.HIGH, "global"))
        return found

    def tell(self, evaluations: Sequence[Trial]) -> None:
        """What was evaluated is not asked for again."""
        self._archive.tell(evaluations)


class SequentialBits(SequentialSearch):
    """The first half of the usual pipeline: bits by an exact knapsack on I_q for each uniform rank, and no more."""

    name = "sequential_bits"

    def _next(self) -> IntArray | None:
        return next((row for row in self._uniform if self._archive.claim(row, Fidelity.HIGH)), None)
