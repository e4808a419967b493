"""NSGA-II's selection over (loss, memory) by pymoo, and Eq. 7's promotion to high fidelity."""

import numpy as np
import torch
from pymoo.indicators.hv import HV
from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.importance import scaled_by_value
from qra_bo.space import FloatArray, IntArray
from surrogates.fidelity import FidelityModel


def rank_and_crowd(objectives: FloatArray, violation: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return front (0 is the best) and crowding distance of ``n`` points, ``n`` each.

    Constrained domination: points that fit are sorted into fronts; those that do not come after all of them, the
    smaller violation first.

    Args:
        objectives: ``n x m``, finite, to be minimised.
        violation: ``n``, 0 where a point fits.
    """
    rank, crowding = np.zeros(len(objectives), dtype=np.int64), np.zeros(len(objectives))
    fitting, others = np.flatnonzero(violation <= 0), np.flatnonzero(violation > 0)
    fronts = NonDominatedSorting().do(objectives[fitting]) if len(fitting) else []
    for number, front in enumerate(fronts):
        members = fitting[front]
        rank[members] = number
        crowding[members] = get_crowding_function("cd").do(objectives[members])
    rank[others] = len(fronts) + np.unique(violation[others], return_inverse=True)[1]
    return rank, crowding


def survivors(rank: IntArray, crowding: FloatArray, n: int) -> IntArray:
    """Return positions of the ``n`` best by front, then by crowding distance, then by position."""
    return np.asarray(np.lexsort((np.arange(len(rank)), -crowding, rank))[:n])


def tournament(rank: IntArray, crowding: FloatArray, rng: np.random.Generator) -> int:
    """Return the position of the better of two random points."""
    a, b = (int(i) for i in rng.integers(len(rank), size=2))
    return a if (rank[a], -crowding[a]) <= (rank[b], -crowding[b]) else b


def hypervolume(objectives: FloatArray, reference: FloatArray) -> float:
    """Return the volume that ``n x m`` points dominate up to ``reference`` (``m``); 0 if none is better than it."""
    inside = objectives[(objectives < reference).all(axis=1)]
    return float(HV(ref_point=reference)(inside)) if len(inside) else 0.0


LEAST_PAIRS = 10
"""Allocations known at both fidelities before the model is fitted; the mean shift between them is used until then."""


class Promotion:
    """Estimates of high-fidelity losses, by which allocations are promoted.

    Args:
        importance_q: I_q, ``L``, in [0, 1].
        importance_r: I_r, ``L``, in [0, 1].
        seed: Seed of the published network (``surrogates.fidelity``).
    """

    def __init__(self, problem: SearchProblem, importance_q: FloatArray, importance_r: FloatArray, seed: int) -> None:
        self._problem, self._seed = problem, seed
        self._importance_q, self._importance_r = importance_q, importance_r
        self._model: FidelityModel | None = None
        self._shift = 0.0

    def fit(self, rows: IntArray, low: FloatArray, high: FloatArray) -> None:
        """Learn from ``n`` allocations (``n x 2 L``) known at both fidelities."""
        self._model = None
        self._shift = float(np.mean(high - low)) if len(rows) else 0.0
        if len(rows) >= LEAST_PAIRS:
            features = torch.from_numpy(self.features(rows, low))
            self._model = FidelityModel(features, torch.from_numpy(high), self._seed)

    def estimate(self, rows: IntArray, low: FloatArray) -> FloatArray:
        """Return expected high-fidelity losses of ``n x 2 L`` rows with these low-fidelity losses, ``n``."""
        if self._model is None or len(rows) == 0:
            return low + self._shift
        return np.asarray(self._model.predict(torch.from_numpy(self.features(rows, low))).numpy())

    def features(self, rows: IntArray, low: FloatArray) -> FloatArray:
        """Return low-fidelity loss, memory, coverage sums and histograms of bits and ranks, ``n x (4 + F + R)``."""
        space, n = self._problem.space, self._problem.space.n_units
        q, r = rows[:, :n], rows[:, n:]
        s_q, s_r = scaled_by_value(rows, space)
        memory = self._problem.costs.totals(rows) / self._problem.budget_bytes
        shares = [(q == i).mean(axis=1) for i in range(len(space.formats))]
        shares += [(r == i).mean(axis=1) for i in range(len(space.ranks))]
        return np.column_stack([low, memory, s_q @ self._importance_q / n, s_r @ self._importance_r / n, *shares])
