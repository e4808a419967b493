"""pymoo's NSGA-II over loss and bytes, with its integer operators."""

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.problems.static import StaticProblem

from bench.peers.base import Peer
from qra_bo.searchers.base import SearchProblem
from qra_bo.space import IntArray

POPULATION = 10
FAILED_LOSS = 1e3
"""What stands for the loss of an evaluation that failed: worse than any."""


class Nsga2(Peer):
    """NSGA-II, a generation at a time, from the uniform baselines and random allocations that use up the budget.

    Args:
        problem: What is searched.
        population: Size of the population, and of every generation's offspring; at least 4.
    """

    name = "nsga2"

    def __init__(self, problem: SearchProblem, population: int = POPULATION) -> None:
        super().__init__(problem, n_initial=population)
        self._size = population
        self._frame = Problem(n_var=len(self._tops), n_obj=2, xl=0, xu=np.maximum(self._tops, 1), vtype=int)
        self._algorithm: NSGA2 | None = None
        self._offspring: list[IntArray] = []
        self._told: dict[bytes, float] = {}
        self._generation: list[IntArray] = []

    def _learn(self, row: IntArray, loss: float | None) -> None:
        self._told[row.tobytes()] = FAILED_LOSS if loss is None else loss

    def _suggest(self) -> IntArray:
        if self._algorithm is None:
            rows, _ = self._known
            self._algorithm = NSGA2(
                pop_size=self._size, sampling=rows[np.argsort(self._losses(rows), kind="stable")[: self._size]],
                crossover=SBX(prob=0.9, eta=3.0, vtype=float, repair=RoundingRepair()),
                mutation=PM(eta=3.0, vtype=float, repair=RoundingRepair()), eliminate_duplicates=True)
            self._algorithm.setup(self._frame, termination=NoTermination(), seed=self._seed, verbose=False)
            self._give(self._algorithm.ask().get("X").astype(np.int64))
        if not self._offspring:
            self._give(np.array(self._generation))
            self._generation = []
            self._offspring = list(self._algorithm.ask().get("X").astype(np.int64))
        row = np.clip(self._repair(np.minimum(self._offspring.pop(0), self._tops)), 0, self._tops)
        self._generation.append(row)
        return row

    def _give(self, rows: IntArray) -> None:
        """Tell the algorithm of rows with what is known of them; rows that still wait count as failed."""
        if self._algorithm is None or not len(rows):
            return
        share = self._problem.costs.totals(rows) / self._problem.budget_bytes
        objectives = np.column_stack([self._losses(rows), share])
        population = Population.new("X", rows.astype(float))
        Evaluator().eval(StaticProblem(self._frame, F=objectives), population)
        self._algorithm.tell(infills=population)

    def _losses(self, rows: IntArray) -> np.ndarray:
        return np.array([self._told.get(row.tobytes(), FAILED_LOSS) for row in rows])


