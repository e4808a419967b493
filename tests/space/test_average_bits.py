"""The limit on average bits against the plain definition, for filters, exact and relaxed knapsacks, and repair."""

import numpy as np
import pytest

from qra_bo.sensitivity.importance import Repair
from qra_bo.space import CostTable, Linear, SearchSpace, Unit, average_bits, limit_average_bits
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.space.lagrangian import solve_relaxed
from qra_bo.utils.errors import BudgetError
from tests.spaces import every_row, make_costs, make_space


def uneven_space(n_units: int) -> SearchSpace:
    """Units of different sizes, so that the average is not that of plain bits."""
    plain = make_space(n_units, ranks=(1, 4))
    units = tuple(Unit(u.name, (Linear(u.linears[0].name, 64 * (i + 1), 64, i, "mlp", "gateup"),))
                  for i, u in enumerate(plain.units))
    return SearchSpace(units, plain.formats, plain.ranks)


@pytest.fixture(name="problem", params=[3.0, 3.4, 4.0])
def make_problem(request: pytest.FixtureRequest) -> tuple[SearchSpace, CostTable, CostTable, int, float]:
    space = uneven_space(3)
    costs = make_costs(space)
    budget = int(np.quantile(costs.totals(every_row(space)), 0.8))
    return space, costs, limit_average_bits(costs, space, budget, request.param), budget, request.param


def test_feasible_is_budget_and_average(problem: tuple[SearchSpace, CostTable, CostTable, int, float]) -> None:
    space, costs, limited, budget, limit = problem
    rows = every_row(space)
    bits = [average_bits([space.formats[q].bits for q in row[:3]], space.unit_numel) for row in rows]
    wanted = costs.feasible(rows, budget) & (np.array(bits) <= limit + 1e-12)
    assert (limited.feasible(rows, budget) == wanted).all()
    assert 0 < wanted.sum() < costs.feasible(rows, budget).sum()


def test_solvers_and_repair_keep_to_it(problem: tuple[SearchSpace, CostTable, CostTable, int, float]) -> None:
    space, _, limited, budget, limit = problem
    rng, rows = np.random.default_rng(0), every_row(space)
    fits = limited.feasible(rows, budget)
    repair = Repair(limited, budget, np.linspace(0, 1, 3), np.linspace(1, 0, 3))
    for _ in range(5):
        values = rng.standard_normal(limited.shape)
        totals = values[np.arange(3), rows[:, :3], rows[:, 3:]].sum(axis=1)
        best = rows[fits][totals[fits].argmin()]
        assert solve_knapsack(values, limited, budget).tolist() == best.tolist()
        for row in (solve_relaxed(values, limited, budget), repair(rows[rng.integers(len(rows))])):
            assert limited.feasible(row[None, :], budget)[0]
            assert average_bits(space.bits(space.decode(row)), space.unit_numel) <= limit + 1e-12


def test_a_limit_below_the_ladder_is_refused() -> None:
    space = make_space(2)
    with pytest.raises(BudgetError, match=r"max_average_bits=1\.5 is below the lowest bit-width of the space, 2"):
        limit_average_bits(make_costs(space), space, 10**6, 1.5)
