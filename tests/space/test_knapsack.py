"""The knapsack against brute force, with several phases, spikes, cuts and regions."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import milp

from qra_bo.space import knapsack
from qra_bo.space.cost import CostTable, PhaseCost
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.utils.errors import BudgetError


def random_problem(seed: int, n_units: int, n_phases: int) -> tuple[np.ndarray, CostTable, int]:
    rng = np.random.default_rng(seed)
    shape = (n_units, 3, 3)
    phases = tuple(PhaseCost(f"p{i}", int(rng.integers(0, 50)), rng.integers(1, 1000, shape) * 7,
                             rng.integers(0, 900, shape) * 5) for i in range(n_phases))
    costs = CostTable(phases)
    totals = costs.totals(every_row(n_units))
    return rng.normal(size=shape), costs, int(np.quantile(totals, rng.uniform(0.05, 0.9)))


def every_row(n_units: int) -> np.ndarray:
    return np.array(list(itertools.product(*[range(3)] * (2 * n_units))), dtype=np.int64)


def objective(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    n = values.shape[0]
    return values[np.arange(n), rows[:, :n], rows[:, n:]].sum(axis=1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n_units=st.integers(1, 3), n_phases=st.integers(1, 3))
def test_equals_brute_force(seed: int, n_units: int, n_phases: int) -> None:
    values, costs, budget = random_problem(seed, n_units, n_phases)
    rows = every_row(n_units)
    fits = rows[costs.feasible(rows, budget)]
    row = solve_knapsack(values, costs, budget)
    assert costs.feasible(row[None], budget)[0]
    assert objective(values, row[None])[0] == pytest.approx(objective(values, fits).min(), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 2])
def test_forbidden_rows_give_the_best_in_order(seed: int) -> None:
    values, costs, budget = random_problem(seed, 2, 2)
    rows = every_row(2)
    fits = rows[costs.feasible(rows, budget)]
    order = np.sort(objective(values, fits))
    found = np.zeros((0, 4), dtype=np.int64)
    for rank in range(min(4, len(fits))):
        row = solve_knapsack(values, costs, budget, forbid=found)
        assert objective(values, row[None])[0] == pytest.approx(order[rank], abs=1e-9)
        found = np.vstack([found, row])
    with pytest.raises(BudgetError, match="no further allocation"):
        solve_knapsack(values, costs, budget, forbid=fits)


def test_the_budget_holds_to_the_byte() -> None:
    unit = np.array([[[1_000_000_007], [1_999_999_999]], [[1_000_000_009], [2_000_000_003]]], dtype=np.int64)
    costs = CostTable((PhaseCost("p", 11, unit, np.zeros_like(unit)),))
    values = np.array([[[1.0], [0.0]], [[1.0], [0.0]]])
    total = 11 + 1_999_999_999 + 2_000_000_003
    assert solve_knapsack(values, costs, total).tolist() == [1, 1, 0, 0]
    assert solve_knapsack(values, costs, total - 1)[:2].sum() == 1


def near_equal(n_units: int) -> tuple[np.ndarray, CostTable, int]:
    """Values that are all but proportional to bytes: the solver must tell very many rows apart."""
    rng = np.random.default_rng(1)
    size = rng.integers(1000, 2000, (n_units, 3, 3))
    costs = CostTable((PhaseCost("p", 0, size, np.zeros_like(size)),))
    middle = int((size.reshape(n_units, -1).min(axis=1).sum() + size.reshape(n_units, -1).max(axis=1).sum()) // 2)
    return 1.0 - size / 2000 + rng.uniform(0, 1e-4, size.shape), costs, middle


def test_a_solve_that_need_not_be_exact_stops_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values, costs, budget = near_equal(20)
    nodes = []

    def counted(*args: object, **kwargs: object) -> object:
        result = milp(*args, **kwargs)
        nodes.append(result.mip_node_count)
        return result

    monkeypatch.setattr(knapsack, "milp", counted)
    monkeypatch.setattr(knapsack, "MOST_NODES", 2)
    first = solve_knapsack(values, costs, budget, rel_gap=1e-9)
    again = solve_knapsack(values, costs, budget, rel_gap=1e-9, forbid=first[None])
    assert max(nodes) <= 2
    assert costs.feasible(np.stack([first, again]), budget).all()
    assert not np.array_equal(first, again)
    nodes.clear()
    exact = solve_knapsack(values, costs, budget)
    assert max(nodes) > 2
    assert objective(values, exact[None])[0] <= objective(values, first[None])[0]


def test_without_a_row_at_the_limit_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    values, costs, budget = random_problem(3, 3, 1)
    asked: list[dict[str, float]] = []

    def starved(*args: object, options: dict[str, float], **kwargs: object) -> object:
        asked.append(options)
        return SimpleNamespace(x=None, status=4) if "node_limit" in options else milp(*args, options=options, **kwargs)

    monkeypatch.setattr(knapsack, "milp", starved)
    row = solve_knapsack(values, costs, budget, rel_gap=1e-9)
    assert objective(values, row[None])[0] == pytest.approx(
        objective(values, solve_knapsack(values, costs, budget)[None])[0])
    assert ["node_limit" in options for options in asked[:2]] == [True, False]
