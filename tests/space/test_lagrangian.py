"""The fast knapsack against the exact one."""

import numpy as np
import pytest

from qra_bo.memory import MemoryModel, TrainShape
from qra_bo.space import uniform
from qra_bo.space.cost import CostTable, PhaseCost
from qra_bo.space.decoder import spec_from_numbers
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.space.lagrangian import Region, solve_relaxed
from qra_bo.utils.errors import BudgetError
from tests.memory.spaces import space_of
from tests.space.test_knapsack import objective, random_problem


def realistic(seed: int, n_units: int = 20) -> tuple[np.ndarray, CostTable, int]:
    rng = np.random.default_rng(seed)
    weights = rng.integers(3, 6, n_units)[:, None, None] * np.array([250, 350, 412, 810])[None, :, None] * 1000
    unit = weights + np.array([1, 2, 4, 8, 16])[None, None, :] * 160_000
    spike = np.broadcast_to(np.array([4, 4, 4, 2])[None, :, None] * 500_000, unit.shape).astype(np.int64)
    costs = CostTable((PhaseCost("step", 7, unit, 0 * unit), PhaseCost("forward", 5, unit * 9 // 10, spike)))
    budget = int(costs.totals(np.array([[2] * n_units + [2] * n_units]))[0])
    damage = np.cumsum(rng.gamma(1, 1, (n_units, 4)), axis=1)[:, ::-1]
    values = damage[:, :, None] - 0.5 * np.log2(np.array([1, 2, 4, 8, 16])) + 0.2 * rng.normal(size=unit.shape)
    return values, costs, budget


@pytest.mark.parametrize("seed", range(3))
def test_nearly_optimal_and_within_the_budget(seed: int) -> None:
    values, costs, budget = realistic(seed)
    row = solve_relaxed(values, costs, budget)
    assert costs.feasible(row[None], budget)[0]
    exact, fast = (objective(values, r[None])[0] for r in (solve_knapsack(values, costs, budget, rel_gap=1e-3), row))
    free = values.reshape(len(values), -1).min(axis=1).sum()
    assert fast - free <= 1.03 * (exact - free)  # 3 % of what the budget costs


@pytest.mark.parametrize("seed", range(3))
def test_region_is_kept(seed: int) -> None:
    values, costs, budget = realistic(seed)
    n = len(values)
    centre = np.array([2] * n + [1] * n, dtype=np.int64)
    row = solve_relaxed(values, costs, budget, Region(centre, 4))
    assert ((row[:n] != centre[:n]) | (row[n:] != centre[n:])).sum() <= 4
    assert costs.feasible(row[None], budget)[0]
    assert objective(values, row[None])[0] < objective(values, centre[None])[0]


def test_a_hopeless_budget_of_several_phases_is_refused() -> None:
    values, costs, _ = random_problem(0, 3, 2)
    with pytest.raises(BudgetError):
        solve_relaxed(values, costs, 3)


def test_a_budget_without_limits_gives_the_minimum() -> None:
    values, costs, _ = random_problem(0, 3, 2)
    row = solve_relaxed(values, costs, 10**9)
    assert objective(values, row[None])[0] == pytest.approx(values.reshape(3, -1).min(axis=1).sum())


def test_no_single_change_improves_on_it() -> None:
    values, costs, budget = realistic(5, n_units=4)
    row = solve_relaxed(values, costs, budget)
    for unit in range(4):
        for f in range(4):
            for r in range(5):
                other = row.copy()
                other[unit], other[4 + unit] = f, r
                better = objective(values, other[None])[0] < objective(values, row[None])[0] - 1e-9
                assert not (better and costs.feasible(other[None], budget)[0])


@pytest.mark.parametrize("fmt", ["int2-g64", "int3-g64", "nf4"])
def test_few_units_with_large_spikes_get_what_fits(fmt: str) -> None:
    one_layer = spec_from_numbers("one", "llama", n_layers=1, hidden_size=576, intermediate_size=1536, n_heads=9,
                                  n_kv_heads=3, head_dim=64, vocab_size=512, tied=True)
    space = space_of(one_layer, "module", ("int2-g64", "int3-g64", "nf4", "int8"))
    costs = MemoryModel(one_layer, TrainShape(2, 32)).table(space)
    budget = int(costs.totals(space.encode(uniform(space.n_units, fmt, 1))[None])[0])
    row = solve_relaxed(np.random.default_rng(0).standard_normal(costs.shape), costs, budget)
    assert costs.feasible(row[None], budget)[0]


def test_nothing_fits() -> None:
    values, costs, _ = realistic(0)
    with pytest.raises(BudgetError, match="fits into 3 bytes"):
        solve_relaxed(values, costs, 3)
