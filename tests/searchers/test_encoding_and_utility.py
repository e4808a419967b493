"""Eqs. 8 and 9 against hand-computed cases."""

import numpy as np
import pytest

from qra_bo.searchers.trust_region import embed, published_utility, unit_importance
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space.cost import pareto_front
from tests.searchers.landscape import make_landscape


def test_eq9_embedding_by_hand() -> None:
    space = make_landscape(0, n_units=2, bits=(2, 4, 8), ranks=(4, 8, 16), baseline=(8, 16)).problem.space
    rows = np.array([[0, 1, 2, 1]], dtype=np.int64)  # bits 2 and 4, ranks 16 and 8
    s_q, s_r = [0.0, (4 - 2) / 6], [1.0, (8 - 4) / 12]
    importance = np.array([0.25, 0.75])
    want = [*s_q, *s_r, (0.25 * 0.0 + 0.75 * s_q[1]) / 2, (0.25 * 1.0 + 0.75 * s_r[1]) / 2]
    np.testing.assert_allclose(embed(rows, space, importance), [want], atol=1e-12)


def test_eq9_of_ladders_with_one_value_is_zero() -> None:
    space = make_landscape(0, n_units=2, bits=(4,), ranks=(8,), baseline=(4, 8)).problem.space
    assert embed(np.zeros((1, 4), dtype=np.int64), space, np.ones(2)).tolist() == [[0.0] * 6]


def test_importance_is_the_mean_of_scaled_damage_and_gain() -> None:
    damage = np.array([[1.0, 0.1], [3.0, 0.1], [2.0, 0.1]])
    gain = np.array([[9.0, 0.0], [9.0, 4.0], [9.0, 1.0]])
    both = SensitivityProfile(("a", "b", "c"), ("x", "y"), damage, damage, gain, 4.0, "hand")
    np.testing.assert_allclose(unit_importance(both), [0.0, 1.0, (0.5 + 0.25) / 2])
    alone = SensitivityProfile(("a", "b", "c"), ("x", "y"), damage, damage, None, 4.0, "hand")
    np.testing.assert_allclose(unit_importance(alone), [0.0, 1.0, 0.5])


def test_eq8_utility_by_hand() -> None:
    losses = np.array([4.0, 4.2, 4.4, 4.5])
    memory = np.array([300, 200, 100, 250], dtype=np.int64)
    assert pareto_front(losses, memory).tolist() == [0, 1, 2]
    # On the front losses span 4.0 to 4.4 and bytes 100 to 300; the last point lies off it.
    want = [0.6 * 1.0 - 0.4 * 1.0, 0.6 * 0.5 - 0.4 * 0.5, 0.6 * 0.0 - 0.4 * 0.0, 0.6 * -0.25 - 0.4 * 0.75]
    np.testing.assert_allclose(published_utility(losses, memory), want, atol=1e-12)


def test_the_front_is_the_non_dominated_set_by_brute_force() -> None:
    losses, memory = np.random.default_rng(0).integers(0, 9, (2, 30))
    beaten = (losses[None] <= losses[:, None]) & (memory[None] <= memory[:, None]) & (
        (losses[None] < losses[:, None]) | (memory[None] < memory[:, None]))
    front = pareto_front(losses.astype(np.float64), memory)
    kept = {(losses[i], memory[i]) for i in np.flatnonzero(~beaten.any(axis=1))}
    assert [(losses[i], memory[i]) for i in front] == sorted(kept)


def test_equal_losses_leave_the_smaller_on_the_front() -> None:
    assert pareto_front(np.array([1.0, 1.0]), np.array([5, 3], dtype=np.int64)).tolist() == [1]
    assert pytest.approx(0.0) == published_utility(np.array([1.0, 1.0]), np.array([5, 3], dtype=np.int64))[1]
