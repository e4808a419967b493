"""Eq. 7: high-fidelity losses estimated from low-fidelity ones and features of the allocation."""

import numpy as np
import torch

from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import IntArray
from qra_bo.space.encoding import min_max
from surrogates.fidelity import FidelityModel

LEAST_PAIRS = 10
"""Allocations known at both fidelities before the model is fitted; the mean shift between them is used until then."""


class Promotion:
    """Estimates of high-fidelity losses, by which allocations are promoted.

    Args:
        problem: Space and costs.
        importance_q: I_q, ``L``, in [0, 1].
        importance_r: I_r, ``L``, in [0, 1].
        seed: Seed of the published network (``surrogates.fidelity``); ``None``: no network, the early loss decides.
    """

    def __init__(self, problem: SearchProblem, importance_q: FloatArray, importance_r: FloatArray,
                 seed: int | None) -> None:
        self._problem, self._seed = problem, seed
        self._importance_q, self._importance_r = importance_q, importance_r
        self._model: FidelityModel | None = None
        self._shift = 0.0

    def fit(self, rows: IntArray, low: FloatArray, high: FloatArray) -> None:
        """Learn from ``n`` allocations (``n x 2 L``) known at both fidelities."""
        self._model = None
        self._shift = float(np.mean(high - low)) if len(rows) else 0.0
        if len(rows) >= LEAST_PAIRS and self._seed is not None:
            features = torch.from_numpy(self.features(rows, low))
            self._model = FidelityModel(features, torch.from_numpy(high), self._seed)

    def estimate(self, rows: IntArray, low: FloatArray) -> FloatArray:
        """Return expected high-fidelity losses of ``n x 2 L`` rows with these low-fidelity losses, ``n``."""
        if self._model is None or len(rows) == 0:
            return low + self._shift
        predicted: FloatArray = self._model.predict(torch.from_numpy(self.features(rows, low))).numpy()
        return predicted

    def features(self, rows: IntArray, low: FloatArray) -> FloatArray:
        """Return low-fidelity loss, memory, coverage sums and histograms of bits and ranks, ``n x (4 + F + R)``."""
        space, n = self._problem.space, self._problem.space.n_units
        q, r = rows[:, :n], rows[:, n:]
        s_q = min_max(np.array([f.bits for f in space.formats], dtype=np.float64))[q]
        s_r = min_max(np.array(space.ranks.values, dtype=np.float64))[r]
        memory = self._problem.costs.totals(rows) / self._problem.budget_bytes
        shares = [(q == i).mean(axis=1) for i in range(len(space.formats))]
        shares += [(r == i).mean(axis=1) for i in range(len(space.ranks))]
        return np.column_stack([low, memory, s_q @ self._importance_q / n, s_r @ self._importance_r / n, *shares])
