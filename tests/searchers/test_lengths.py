"""Exchange rates at other lengths of training: closed forms of the power laws, and what they change in a loss."""

import math

import numpy as np
import pytest

from qra_bo.searchers.structured.lengths import DEVIATIONS, EXPONENTS, LONGEST, at_length, change
from qra_bo.searchers.structured.rates import Rates, row_of
from qra_bo.sensitivity.change import Change
from qra_bo.space import Allocation
from tests.conformance.searcher import make_problem

RATES = Rates(np.array([0.2, 0.02, 0.005]), np.diag([1e-4, 1e-5, 1e-7]), 0.01, 24, 2)


def test_slopes_follow_power_laws_of_the_length() -> None:
    assert at_length(RATES, 240).slopes == pytest.approx(RATES.slopes * 10.0**EXPONENTS)
    twice = at_length(RATES, 240).slopes / at_length(RATES, 120).slopes
    assert twice == pytest.approx(2.0**EXPONENTS)


def test_rates_of_their_own_length_stay() -> None:
    same = at_length(RATES, 24)
    assert same.slopes.tolist() == RATES.slopes.tolist()
    assert same.covariance.tolist() == RATES.covariance.tolist()


def test_uncertainty_is_that_of_slopes_and_exponents() -> None:
    found, factors = at_length(RATES, 240), 10.0**EXPONENTS
    expected = RATES.covariance.diagonal() * factors**2 + (RATES.slopes * factors * DEVIATIONS * math.log(10)) ** 2
    assert found.covariance.diagonal() == pytest.approx(expected)


def test_rates_stay_beyond_the_longest_measured_ratio() -> None:
    longest = round(24 * LONGEST)
    assert at_length(RATES, 10 * longest).slopes == pytest.approx(at_length(RATES, longest).slopes)


def test_change_is_the_difference_of_both_tables() -> None:
    problem, _ = make_problem()
    found, tables = change(RATES, problem, 24, 240), [at_length(RATES, s).table(problem) for s in (24, 240)]
    rng, n = np.random.default_rng(0), problem.space.n_units
    for _ in range(5):
        a = problem.space.decode(np.array([*rng.integers(0, 4, n), *rng.integers(0, 4, n)]))
        row = row_of(problem, a)
        assert row is not None
        before, after = (table[np.arange(n), row[:n].astype(int), row[n:].astype(int)].sum() for table in tables)
        assert found.of(a) == pytest.approx(after - before)


def test_change_holds_off_the_ladder_of_ranks_and_as_json() -> None:
    found = Change(("a", "b"), np.array([[0.1, 0.2], [0.3, 0.5]]), np.array([-0.01, -0.02]))
    assert found.of(Allocation(("b", "a"), (3, 8))) == pytest.approx(0.5 - 0.01 * math.log2(3) - 0.02 * 3)
    again = Change.from_json(found.to_json())
    assert again.of(Allocation(("b", "a"), (3, 8))) == found.of(Allocation(("b", "a"), (3, 8)))
