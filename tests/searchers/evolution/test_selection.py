"""Fronts, crowding and hypervolume against formulas and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.searchers.evolution.selection import hypervolume, rank_and_crowd, survivors, tournament

ONE = np.ones(2)


@pytest.mark.parametrize(("points", "volume"), [
    ([[0.5, 0.5]], 0.25), ([[1.0, 0.0]], 0.0), ([[2.0, -1.0]], 0.0), ([], 0.0), ([[0.5, 0.5], [0.5, 0.5]], 0.25),
    ([[0.5, 0.5], [0.6, 0.6]], 0.25), ([[-1.0, 0.5]], 1.0),
    ([[0.1, 0.4], [0.3, 0.2]], 0.68)])  # 0.9 x 0.6 + 0.7 x 0.8 - 0.7 x 0.6, where the authors' release gives 0.56
def test_hypervolume_of_few_points(points: list[list[float]], volume: float) -> None:
    assert hypervolume(np.array(points).reshape(-1, 2), ONE) == pytest.approx(volume, abs=1e-12)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 14))
def test_constrained_domination_by_brute_force(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    points, violation = rng.integers(0, 5, (n, 2)).astype(float), np.maximum(0, rng.integers(-4, 4, n)).astype(float)

    def beats(i: int, j: int) -> bool:
        if violation[i] > 0 or violation[j] > 0:
            return bool(violation[i] < violation[j])
        return dominates(points[i], points[j])

    left, want, number = set(range(n)), np.zeros(n, dtype=int), 0
    while left:
        best = {i for i in left if not any(beats(j, i) for j in left)}
        for i in best:
            want[i] = number
        left, number = left - best, number + 1
    rank, crowding = rank_and_crowd(points, violation)
    np.testing.assert_array_equal(rank, want)
    assert not np.isnan(crowding).any()
    kept = survivors(rank, crowding, 5)
    assert len(kept) == min(5, n)
    assert max(rank[kept]) <= np.sort(rank)[len(kept) - 1]


def test_the_crowded_go_first() -> None:
    points = np.array([[0.0, 1.0], [0.49, 0.51], [0.5, 0.5], [0.8, 0.2], [1.0, 0.0]])
    rank, crowding = rank_and_crowd(points, np.zeros(5))
    assert rank.tolist() == [0] * 5
    # distances over both axes, halved: 0.5, 0.31, 0.5 between the infinite ends
    np.testing.assert_allclose(crowding[1:4], [0.5, 0.31, 0.5])
    assert sorted(survivors(rank, crowding, 4).tolist()) == [0, 1, 3, 4]


def test_tournaments_prefer_the_better_front() -> None:
    rank, crowding = np.array([0, 1, 1]), np.array([0.0, 9.0, 1.0])
    rng = np.random.default_rng(0)
    wins = np.bincount([tournament(rank, crowding, rng) for _ in range(3000)], minlength=3) / 3000
    np.testing.assert_allclose(wins, [5 / 9, 3 / 9, 1 / 9], atol=0.03)
