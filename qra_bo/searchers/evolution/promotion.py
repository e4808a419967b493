"""Eq. 7: what the high fidelity will say, judged from the low one and from what the allocation looks like."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import IntArray
from qra_bo.space.encoding import min_max

LEAST_PAIRS = 10
"""Allocations known at both fidelities before the model is fitted; the mean shift between them is used until then."""


class PromotionModel(Protocol):
    """A regression of ``n`` high-fidelity losses on ``n x d`` features."""

    def fit(self, features: FloatArray, target: FloatArray) -> None:
        """Learn from scratch."""
        ...

    def predict(self, features: FloatArray) -> FloatArray:
        """Predicted losses, ``n``."""
        ...


class NetworkPromotion:
    """The published model: ``surrogates.fidelity``'s 2-layer GELU network, deterministic by ``seed``."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fit(self, features: FloatArray, target: FloatArray) -> None:
        """Learn from at least 5 rows."""
        import torch

        from surrogates.fidelity import FidelityModel

        self._model = FidelityModel(torch.from_numpy(features), torch.from_numpy(target), self._seed)

    def predict(self, features: FloatArray) -> FloatArray:
        """Predicted losses, ``n``."""
        import torch

        predicted: FloatArray = self._model.predict(torch.from_numpy(features)).numpy()
        return predicted


class Promotion:
    """Estimates high-fidelity losses and says whom to promote.

    Args:
        problem: Space and costs.
        importance_q: I_q, ``L``, in [0, 1].
        importance_r: I_r, ``L``, in [0, 1].
        make_model: Gives a new, unfitted model; ``None`` leaves it at the mean shift, so that the early loss decides.
    """

    def __init__(self, problem: SearchProblem, importance_q: FloatArray, importance_r: FloatArray,
                 make_model: Callable[[], PromotionModel] | None) -> None:
        self._problem, self._make_model = problem, make_model
        self._importance_q, self._importance_r = importance_q, importance_r
        self._model: PromotionModel | None = None
        self._shift = 0.0

    def fit(self, rows: IntArray, low: FloatArray, high: FloatArray) -> None:
        """Learn from ``n`` allocations (``n x 2 L``) known at both fidelities."""
        self._model = None
        self._shift = float(np.mean(high - low)) if len(rows) else 0.0
        if len(rows) >= LEAST_PAIRS and self._make_model is not None:
            self._model = self._make_model()
            self._model.fit(self.features(rows, low), high)

    def estimate(self, rows: IntArray, low: FloatArray) -> FloatArray:
        """Expected high-fidelity losses of ``n x 2 L`` rows with these low-fidelity losses, ``n``."""
        if self._model is None or len(rows) == 0:
            return low + self._shift
        return self._model.predict(self.features(rows, low))

    def features(self, rows: IntArray, low: FloatArray) -> FloatArray:
        """Low-fidelity loss, memory, coverage sums of bits and ranks, histograms of both, ``n x (4 + F + R)``."""
        space, n = self._problem.space, self._problem.space.n_units
        q, r = rows[:, :n], rows[:, n:]
        s_q = min_max(np.array([f.bits for f in space.formats], dtype=np.float64))[q]
        s_r = min_max(np.array(space.ranks.values, dtype=np.float64))[r]
        memory = self._problem.costs.totals(rows) / self._problem.budget_bytes
        shares = [(q == i).mean(axis=1) for i in range(len(space.formats))]
        shares += [(r == i).mean(axis=1) for i in range(len(space.ranks))]
        return np.column_stack([low, memory, s_q @ self._importance_q / n, s_r @ self._importance_r / n, *shares])
