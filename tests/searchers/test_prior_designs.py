"""First proposals: their number, and their spread over exchange rates between bits and ranks."""

import math
from dataclasses import replace

import numpy as np
import pytest

from qra_bo.searchers.structured.features import prior_tables
from qra_bo.searchers.structured.searcher import StructuredSearch
from qra_bo.space.knapsack import solve_knapsack
from tests.conformance.searcher import make_problem


@pytest.mark.parametrize(("equivalents", "n"), [(1, 4), (12, 4), (20, 5), (24, 6), (40, 8), (120, 8), (math.inf, 4)])
def test_a_quarter_of_the_cost_within_bounds(equivalents: float, n: int) -> None:
    assert len(prior_tables(replace(make_problem(8)[0], max_full_trials=equivalents))) == n


def test_larger_rates_buy_larger_ranks() -> None:
    problem, ranks = replace(make_problem(8, share=0.2)[0], max_full_trials=40.0), []
    for table in prior_tables(problem):
        row = solve_knapsack(table, problem.costs, problem.budget_bytes)
        ranks.append(float(row[problem.space.n_units:].mean()))
    rates = np.array([0.03, 0.3, 1.0, 0.1, 0.3, 1.0, 3.0, 3.0])
    assert min(np.array(ranks)[rates == 3.0]) > max(np.array(ranks)[rates <= 0.1])


def test_number_of_first_proposals_follows_the_effort() -> None:
    problem = replace(make_problem(8, share=0.2)[0], max_full_trials=40.0)
    designs = {tuple(solve_knapsack(t, problem.costs, problem.budget_bytes).tolist()) for t in prior_tables(problem)}
    of_run = StructuredSearch(problem).ask(20)
    asked = [tuple(problem.space.encode(p.allocation).tolist()) for p in of_run]
    assert set(asked[:len(designs)]) == designs
