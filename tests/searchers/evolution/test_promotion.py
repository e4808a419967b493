"""Eq. 7's features and the estimate of high-fidelity losses."""

import numpy as np
import pytest
import torch

from qra_bo.searchers.evolution import selection as module
from qra_bo.searchers.evolution.selection import LEAST_PAIRS, Promotion
from tests.spaces import make_problem


class Linear:
    """Least squares in place of the network."""

    def __init__(self, features: torch.Tensor, target: torch.Tensor, seed: int) -> None:
        self.weights = torch.linalg.lstsq(features, target[:, None], driver="gelsd").solution

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        return (features @ self.weights)[:, 0]


def test_features_in_closed_form() -> None:
    problem = make_problem(2)
    promotion = Promotion(problem, np.array([1.0, 0.5]), np.array([0.0, 1.0]), 0)
    rows = np.array([[0, 3, 1, 3]])  # bits 2, 8; ranks 2, 8 of 1, 2, 4, 8
    memory = problem.costs.totals(rows)[0] / problem.budget_bytes
    want = [5.0, memory, (0 * 1 + 1 * 0.5) / 2, (1 / 7 * 0 + 1 * 1) / 2, 0.5, 0, 0, 0.5, 0, 0.5, 0, 0.5]
    np.testing.assert_allclose(promotion.features(rows, np.array([5.0]))[0], want)


def test_mean_shift_is_used_until_there_are_enough_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FidelityModel", Linear)
    problem = make_problem(3)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, (LEAST_PAIRS, 6))
    low = rng.random(LEAST_PAIRS) + 4
    promotion = Promotion(problem, np.ones(3), np.ones(3), 0)
    np.testing.assert_array_equal(promotion.estimate(rows, low), low)
    high = low - 0.3 + rng.normal(0, 0.01, LEAST_PAIRS)
    promotion.fit(rows[:-1], low[:-1], high[:-1])
    np.testing.assert_allclose(promotion.estimate(rows, low), low + (high - low)[:-1].mean())
    promotion.fit(rows, low, high)
    np.testing.assert_allclose(promotion.estimate(rows, low), high, atol=0.1)
    assert promotion.estimate(rows[:0], low[:0]).shape == (0,)
    promotion.fit(rows[:0], low[:0], high[:0])
    np.testing.assert_array_equal(promotion.estimate(rows, low), low)


def test_network_corrects_early_losses_of_large_ranks() -> None:
    problem = make_problem(8)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, (80, 16))
    high = 4 + 0.05 * rng.random(80)
    low = high + 0.2 - 0.1 * rows[:, 8:].mean(axis=1)
    promotion = Promotion(problem, np.ones(8), np.ones(8), 3)
    promotion.fit(rows[:60], low[:60], high[:60])
    estimate = promotion.estimate(rows[60:], low[60:])
    assert np.corrcoef(estimate, high[60:])[0, 1] > 0.6 > np.corrcoef(low[60:], high[60:])[0, 1] + 0.1
    promotion.fit(rows[:60], low[:60], high[:60])
    np.testing.assert_array_equal(estimate, promotion.estimate(rows[60:], low[60:]))
    assert estimate.mean() == pytest.approx(high.mean(), abs=0.03)
