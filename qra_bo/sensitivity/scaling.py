"""Scaling of sensitivities: one importance a unit, min-max scaled, and Eq. 6's rounding onto ladders."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qra_bo.sensitivity.profile import FloatArray, SensitivityProfile
from qra_bo.space import IntArray, SearchSpace
from qra_bo.space.encoding import min_max
from qra_bo.utils.errors import ConfigError

TAUS: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "identity": lambda x: x, "sqrt": np.sqrt, "square": np.square}
"""Monotone maps of [0, 1] onto itself for Eq. 6."""


def fidelity_importance(profile: SensitivityProfile) -> FloatArray:
    """I_q of every unit in [0, 1], ``L``: averaged over formats (the lowest bits weigh most), scaled."""
    return min_max(profile.quantization_sensitivity.mean(axis=1))


def plasticity_importance(profile: SensitivityProfile, largest_rank: int) -> FloatArray:
    """I_r of every unit in [0, 1], ``L``: the rank sensitivity at ``largest_rank``, scaled.

    Raises:
        ProfileError: If the profile holds no I_r.
    """
    gain = profile.require_rank_sensitivity()
    return min_max(gain[:, min(largest_rank, gain.shape[1]) - 1])


def round_to_ladder(scaled: FloatArray, values: Sequence[int]) -> IntArray:
    """Index of the ladder value nearest to ``first + scaled * (last - first)``; ties go to the lower value.

    Args:
        scaled: Numbers in [0, 1], any shape.
        values: The ladder, in increasing order; equal values (formats of one bit-width) resolve to the first.
    """
    ladder = np.array(values, dtype=np.float64)
    target = ladder[0] + scaled * (ladder[-1] - ladder[0])
    nearest: IntArray = np.abs(target[..., None] - ladder).argmin(axis=-1)
    return nearest


def warm_start(space: SearchSpace, profile: SensitivityProfile, tau: str = "identity") -> IntArray:
    """Eq. 6: the row ``q = round_Q(tau(I_q))``, ``r = round_R(tau(I_r))``, ``2 L``; it need not fit the budget.

    Raises:
        ConfigError: If ``tau`` is unknown.
        ProfileError: If the profile holds no I_r.
    """
    if tau not in TAUS:
        raise ConfigError(f"tau must be one of {list(TAUS)}; got {tau!r}")
    ranks = space.ranks.values
    q = round_to_ladder(TAUS[tau](fidelity_importance(profile)), [f.bits for f in space.formats])
    r = round_to_ladder(TAUS[tau](plasticity_importance(profile, ranks[-1])), ranks)
    return np.concatenate([q, r])
