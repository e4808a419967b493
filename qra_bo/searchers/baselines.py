"""Random search, to compare with."""

from qra_bo.searchers.evolution.variation import random_near_budget
from qra_bo.searchers.observations import ObservingSearcher
from qra_bo.space import IntArray

_TRIES = 200


class RandomSearch(ObservingSearcher):
    """Random allocations that use up the budget."""

    name, stage = "random", "global"

    def _next(self) -> IntArray | None:
        return self._first_new(random_near_budget(self._problem, self._rng) for _ in range(_TRIES))
