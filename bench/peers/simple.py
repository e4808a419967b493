"""Peers without a model: uniform choices alone, and bits by quantisation sensitivity with a uniform rank."""

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.baselines import SequentialSearch
from qra_bo.searchers.observations import ObservingSearcher
from qra_bo.space import IntArray


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


class SequentialBits(SequentialSearch):
    """The first half of the usual pipeline: bits by an exact knapsack on I_q for each uniform rank, and no more."""

    name = "sequential_bits"

    def _next(self) -> IntArray | None:
        return self._first_new(self._uniform)
