"""NSGA-II's selection over (loss, memory) with constrained domination, and the hypervolume, by pymoo."""

import numpy as np
from pymoo.indicators.hv import HV
from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import IntArray


def rank_and_crowd(objectives: FloatArray, violation: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return front (0 is the best) and crowding distance of ``n`` points, ``n`` each.

    Constrained domination: points that fit are sorted into fronts; those that do not come after all of them, the
    smaller violation first.

    Args:
        objectives: ``n x m``, finite, to be minimised.
        violation: ``n``, 0 where a point fits.
    """
    rank = np.zeros(len(objectives), dtype=np.int64)
    crowding = np.zeros(len(objectives))
    fitting, others = np.flatnonzero(violation <= 0), np.flatnonzero(violation > 0)
    n_fronts = 0
    if len(fitting):
        fronts = NonDominatedSorting().do(objectives[fitting])
        n_fronts = len(fronts)
        for number, front in enumerate(fronts):
            members = fitting[front]
            rank[members] = number
            crowding[members] = get_crowding_function("cd").do(objectives[members])
    if len(others):
        rank[others] = n_fronts + np.unique(violation[others], return_inverse=True)[1]
    return rank, crowding


def survivors(rank: IntArray, crowding: FloatArray, n: int) -> IntArray:
    """Return positions of the ``n`` best by front, then by crowding distance, then by position."""
    order: IntArray = np.lexsort((np.arange(len(rank)), -crowding, rank))
    return order[:n]


def tournament(rank: IntArray, crowding: FloatArray, rng: np.random.Generator) -> int:
    """Return the position of the better of two random points."""
    a, b = (int(i) for i in rng.integers(len(rank), size=2))
    return a if (rank[a], -crowding[a]) <= (rank[b], -crowding[b]) else b


def hypervolume(objectives: FloatArray, reference: FloatArray) -> float:
    """Return the volume that ``n x m`` points dominate up to ``reference`` (``m``); 0 if none is better than it."""
    inside = objectives[(objectives < reference).all(axis=1)]
    return float(HV(ref_point=reference)(inside)) if len(inside) else 0.0
