"""Eq. 8: the published utility of an allocation, and the importance of units that Eq. 9 weighs with."""

import numpy as np

from qra_bo.sensitivity.profile import FloatArray, SensitivityProfile
from qra_bo.space.encoding import min_max
from qra_bo.space.space import IntArray


def unit_importance(profile: SensitivityProfile) -> FloatArray:
    """I = (I_q + I_r) / 2, ``L``: damage of the lowest format and gain of the largest rank, both min-max scaled.

    A profile without I_r (its source says so) gives I_q alone.
    """
    damage = min_max(profile.quantization_sensitivity[:, 0])
    return damage if profile.rank_sensitivity is None else (damage + min_max(profile.rank_sensitivity[:, -1])) / 2


def pareto_front(losses: FloatArray, memory: IntArray) -> IntArray:
    """Indices of the points that no other point beats in both loss and bytes (``n`` each), ascending in loss."""
    order = np.lexsort((memory, losses))
    best, front = np.inf, []
    for index in order:
        if memory[index] < best:
            front.append(index)
            best = memory[index]
    return np.array(front, dtype=np.int64)


def published_utility(losses: FloatArray, memory: IntArray, alpha: float = 0.6) -> FloatArray:
    """Eq. 8: ``f = alpha P^ - (1 - alpha) M^``, ``n``, to be maximised.

    Performance (here: minus the loss) and memory are scaled by their extremes on the Pareto front of the ``n``
    points; points off it may leave [0, 1]. A front of one value scales to 0.
    """
    front = pareto_front(losses, memory)

    def scaled(values: FloatArray) -> FloatArray:
        low, high = values[front].min(), values[front].max()
        return (values - low) / (high - low) if high > low else np.zeros_like(values)

    return alpha * scaled(-losses) - (1 - alpha) * scaled(memory.astype(np.float64))
