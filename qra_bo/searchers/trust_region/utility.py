"""Eq. 8: the published utility of an allocation, and the importance of units in Eq. 9."""

import numpy as np

from qra_bo.sensitivity.profile import FloatArray, SensitivityProfile
from qra_bo.space.encoding import min_max
from qra_bo.space.space import IntArray


def unit_importance(profile: SensitivityProfile) -> FloatArray:
    """Return I = (I_q + I_r) / 2, ``L``: sensitivity to the lowest format and to the largest rank, min-max scaled.

    A profile without I_r gives I_q alone.
    """
    i_q = min_max(profile.quantization_sensitivity[:, 0])
    return i_q if profile.rank_sensitivity is None else (i_q + min_max(profile.rank_sensitivity[:, -1])) / 2


def pareto_front(losses: FloatArray, memory: IntArray) -> IntArray:
    """Return indices of the points that no other point beats in both loss and bytes (``n`` each), ascending in loss."""
    order = np.lexsort((memory, losses))
    best, front = np.inf, []
    for index in order:
        if memory[index] < best:
            front.append(index)
            best = memory[index]
    return np.array(front, dtype=np.int64)


def published_utility(losses: FloatArray, memory: IntArray, alpha: float = 0.6) -> FloatArray:
    """Return Eq. 8's ``f = alpha P^ - (1 - alpha) M^``, ``n``, to be maximised.

    Performance (here: minus the loss) and memory are scaled by their extremes on the Pareto front of the ``n``
    points; points off it may leave [0, 1]. A front of one value scales to 0.
    """
    front = pareto_front(losses, memory)

    def scaled(values: FloatArray) -> FloatArray:
        low, high = values[front].min(), values[front].max()
        return (values - low) / (high - low) if high > low else np.zeros_like(values)

    return alpha * scaled(-losses) - (1 - alpha) * scaled(memory.astype(np.float64))
