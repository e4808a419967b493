"""Variation and first populations: always admissible, with the odds that are stated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.searchers.evolution.variation import Operators, random_near_budget, warm_population
from qra_bo.sensitivity.importance import Repair, warm_start
from qra_bo.space.neighbourhood import ladder_tops
from tests.spaces import distance, make_problem


def make(n_units: int = 6, quantile: float = 0.4, gamma: float = 1.0) -> tuple[Operators, Repair]:
    problem = make_problem(n_units, quantile=quantile)
    i_q, i_r = np.linspace(0, 1, n_units), np.linspace(1, 0, n_units)
    repair = Repair(problem.costs, problem.budget_bytes, i_q, i_r)
    return Operators(problem, repair, i_q, i_r, gamma), repair


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), quantile=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_children_are_admissible(seed: int, quantile: float) -> None:
    problem, (operators, _) = make_problem(6, quantile=quantile), make(quantile=quantile)
    rng = np.random.default_rng(seed)
    first, second = (random_near_budget(problem, rng) for _ in range(2))
    for vary in (operators.guided, operators.coupled, operators.atomic, lambda r, g: operators.child(r, second, g)):
        row = vary(first, rng)
        if row is not None:
            assert problem.costs.feasible(row[None], problem.budget_bytes)[0]
            assert ((row >= 0) & (row <= ladder_tops(problem.space))).all()


def test_crossover_takes_every_coordinate_from_a_parent() -> None:
    operators, _ = make()
    rng = np.random.default_rng(0)
    child = np.stack([operators.crossover(np.zeros(12, dtype=np.int64), np.ones(12, dtype=np.int64), rng)
                      for _ in range(400)])
    assert set(np.unique(child)) == {0, 1}
    assert child.mean() == pytest.approx(0.5, abs=0.03)


def test_guided_mutation_follows_importance() -> None:
    operators, _ = make(quantile=1.0, gamma=2.0)
    rng, row = np.random.default_rng(0), np.ones(12, dtype=np.int64)
    moved = np.stack([operators.guided(row, rng) - row for _ in range(4000)])
    assert (np.abs(moved).sum(axis=1) == 1).all()
    counts = np.abs(moved).sum(axis=0) / 4000
    odds = (np.linspace(0, 1, 6) + 0.02) ** 2
    want = np.concatenate([odds / odds.sum(), odds[::-1] / odds.sum()]) / 2
    np.testing.assert_allclose(counts, want, atol=0.03)
    assert moved.sum() == pytest.approx(0, abs=300)


def test_coupled_mutation_keeps_its_step_and_pays_elsewhere() -> None:
    problem, (operators, repair) = make_problem(6, quantile=0.4), make(quantile=0.4)
    full = repair(ladder_tops(problem.space))
    rng = np.random.default_rng(0)
    paid = 0
    for _ in range(100):
        row = operators.coupled(full, rng)
        raised = row > full
        assert raised.sum() == 1
        paid += bool((row < full).any())
    assert paid > 30  # the other half fits into what repair left over


def test_atomic_mutation_is_one_edit_where_there_is_room() -> None:
    operators, _ = make(quantile=1.0)
    row = np.ones(12, dtype=np.int64)
    edits = np.stack([operators.atomic(row, np.random.default_rng(i)) for i in range(50)])
    assert (distance(edits, row) == 1).all()


def test_warm_population_starts_with_eq_6_and_fits() -> None:
    problem = make_problem(8, quantile=0.3)
    i = np.ones(8)
    repair = Repair(problem.costs, problem.budget_bytes, i, i)
    rows = warm_population(problem, repair, 20, np.random.default_rng(0))
    assert rows.shape == (20, 16)
    np.testing.assert_array_equal(rows[0], repair(warm_start(problem.space, problem.profile)))
    assert problem.costs.feasible(rows, problem.budget_bytes).all()
    assert len(np.unique(rows, axis=0)) > 15


def test_random_rows_use_up_the_budget_and_differ_as_wholes() -> None:
    problem = make_problem(30, quantile=0.4)
    rng = np.random.default_rng(0)
    rows = np.stack([random_near_budget(problem, rng) for _ in range(100)])
    totals = problem.costs.totals(rows)
    assert (totals <= problem.budget_bytes).all()
    single = max(int(np.diff(p.unit, axis=a).max()) + int(p.spike.max()) for p in problem.costs.phases for a in (1, 2))
    assert (totals > problem.budget_bytes - single).all()
    assert rows[:, :30].mean(axis=1).std() > 0.3
    assert rows[:, 30:].mean(axis=1).std() > 0.3
