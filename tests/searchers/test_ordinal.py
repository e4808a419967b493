"""The searchers on an ordinal problem: near the exact optimum, and never over the budget."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from qra_bo.searchers.base import Searcher
from qra_bo.searchers.baselines import HillClimb, RandomSearch
from qra_bo.searchers.evolution import EvolutionarySearch
from qra_bo.searchers.ordinal import Choice, OrdinalProblem, OrdinalSearch, minimise
from qra_bo.searchers.structured import StructuredSearch
from qra_bo.utils.errors import SpaceError

LOAD = np.array([9.0, 1.0, 4.0, 2.0])
FIRST, SECOND = np.array([1, 2, 4, 8]), np.array([1, 2, 3, 4])
COST = np.repeat((FIRST[:, None] + SECOND[None, :])[None], 4, axis=0).astype(np.int64)
BUDGET = 26


def problem(budget: int = BUDGET) -> OrdinalProblem:
    return OrdinalProblem(("a", "b", "c", "d"), COST, budget, LOAD[:, None] / FIRST[None, :],
                          LOAD[:, None] * np.log1p(SECOND)[None, :])


def objective(choice: Choice) -> float:
    first, second = FIRST[list(choice[0])], SECOND[list(choice[1])]
    return float((LOAD ** 1.2 / np.sqrt(first * second)).sum())


def cost(choice: Choice) -> int:
    return int(COST[np.arange(4), list(choice[0]), list(choice[1])].sum())


def optimum() -> float:
    rows = itertools.product(itertools.product(range(4), repeat=4), itertools.product(range(4), repeat=4))
    return min(objective(choice) for choice in rows if cost(choice) <= BUDGET)


def test_the_default_comes_within_two_percent_of_the_exact_optimum() -> None:
    found = minimise(problem(), objective, evaluations=30, seed=0)
    assert found is not None
    choice, value = found
    assert cost(choice) <= BUDGET
    assert objective(choice) == value <= 1.02 * optimum()


@pytest.mark.parametrize("searcher", [StructuredSearch, RandomSearch, HillClimb, EvolutionarySearch])
def test_every_choice_fits_and_none_is_asked_twice(searcher: Callable[..., Searcher]) -> None:
    search, seen = OrdinalSearch(problem(), searcher, seed=1, evaluations=12), []
    for i in range(12):
        for choice in search.ask(1):
            seen.append(choice)
            search.tell(choice, None if i == 3 else objective(choice))
    assert len(seen) == len(set(seen)) > 5
    assert all(cost(choice) <= BUDGET for choice in seen)
    assert search.best is not None
    assert search.best[1] == min(objective(c) for i, c in enumerate(seen) if i != 3)


def test_given_choices_come_first_and_count() -> None:
    now: Choice = ((1, 1, 1, 1), (2, 2, 2, 2))
    asked: list[Choice] = []

    def tell(choice: Choice) -> float:
        asked.append(choice)
        return objective(choice)

    minimise(problem(), tell, evaluations=4, first=[now], searcher=RandomSearch)
    assert asked[0] == now
    assert len(asked) == 4


@pytest.mark.parametrize("failed", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_a_failure(failed: float) -> None:
    search = OrdinalSearch(problem(), seed=1, evaluations=8)
    values = []
    for i in range(8):
        (choice,) = search.ask(1)
        values.append(failed if i in (0, 5) else objective(choice))
        search.tell(choice, values[-1])
    assert search.best is not None
    assert search.best[1] == min(v for v in values if math.isfinite(v))
    lost = OrdinalSearch(problem())
    lost.tell(((0,) * 4, (0,) * 4), failed)
    assert lost.best is None


def test_wrong_shapes_and_too_small_budgets_are_refused() -> None:
    with pytest.raises(SpaceError, match=r"harm \(4, 3\), expected \(4, 4\)"):
        OrdinalProblem(("a", "b", "c", "d"), COST, BUDGET, np.zeros((4, 3)), np.zeros((4, 4)))
    with pytest.raises(SpaceError, match="the cheapest choice costs 8, over the budget of 7"):
        problem(7)
