"""Neighbourhoods against brute force over whole spaces."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.space.neighbourhood import atomic_neighbours, neighbours_within
from tests.spaces import distance, every_row, make_costs, make_space

NO_LIMIT = 10**12


def as_set(rows: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in r) for r in rows}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n_units=st.integers(1, 3), radius=st.integers(1, 5), tight=st.booleans())
def test_equals_brute_force(seed: int, n_units: int, radius: int, tight: bool) -> None:
    space = make_space(n_units, ranks=(1, 4, 8))
    costs, rows = make_costs(space), every_row(space)
    rng = np.random.default_rng(seed)
    row = rows[rng.integers(len(rows))]
    budget = int(costs.totals(row[None])[0]) if tight else NO_LIMIT
    found = neighbours_within(space, row, radius, costs=costs, budget_bytes=budget, rng=rng)
    d = distance(rows, row)
    want = rows[(d >= 1) & (d <= radius) & costs.feasible(rows, budget)]
    assert as_set(found) == as_set(want)
    assert len(found) == len(want)
    assert (np.diff(distance(found, row)) >= 0).all()


def test_atomic_neighbours_are_one_step_away_and_all_of_them() -> None:
    space = make_space(2, ranks=(1, 4, 8))
    for row in every_row(space):
        rows = every_row(space)
        assert as_set(atomic_neighbours(space, row)) == as_set(rows[distance(rows, row) == 1])


def test_a_cap_keeps_the_near_shells_whole_and_samples_the_rest() -> None:
    space = make_space(12)
    costs = make_costs(space)
    row = np.ones(24, dtype=np.int64)

    def draw(seed: int) -> np.ndarray:
        return neighbours_within(space, row, 3, costs=costs, budget_bytes=NO_LIMIT, cap=500,
                                 rng=np.random.default_rng(seed))

    found = draw(0)
    assert len(found) == len(as_set(found)) == 500
    assert as_set(atomic_neighbours(space, row)) <= as_set(found)
    assert distance(found, row).max() == 3
    np.testing.assert_array_equal(found, draw(0))
    assert as_set(found) != as_set(draw(1))


def test_sampled_rows_are_uniform_over_the_shells() -> None:
    # The middle of two ladders of 3 and the corner of two of 4: every row of shells 2 and 3 equally often.
    space = make_space(2, formats=make_space(1).formats[:3])
    costs, rows = make_costs(space), every_row(space)
    row = np.array([1, 1, 0, 0])
    outer = as_set(rows[(distance(rows, row) >= 2) & (distance(rows, row) <= 3)])
    counts = dict.fromkeys(outer, 0)
    n_near, draws = int((distance(rows, row) == 1).sum()), 1500
    rng = np.random.default_rng(3)
    for _ in range(draws):
        found = neighbours_within(space, row, 3, costs=costs, budget_bytes=NO_LIMIT, cap=n_near + 1, rng=rng)
        (extra,) = as_set(found) & outer
        counts[extra] += 1
    expected = draws / len(outer)
    assert max(abs(c - expected) for c in counts.values()) < 5 * np.sqrt(expected)
