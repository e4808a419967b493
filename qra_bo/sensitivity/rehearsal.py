"""A made-up profile with which a search method's options are tried before the real profile is measured."""

import numpy as np

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import SearchSpace


def rehearsal_profile(space: SearchSpace) -> SensitivityProfile:
    """Return sensitivities that differ in every unit, fall along the formats and grow with the rank."""
    units = np.arange(1, space.n_units + 1, dtype=np.float64)[:, None]
    quantization = units * np.arange(len(space.formats), 0, -1)
    rank = units * np.arange(1, space.ranks.values[-1] + 1)
    return SensitivityProfile(tuple(u.name for u in space.units), tuple(f.name for f in space.formats), quantization,
                              quantization, rank, 1.0, "a rehearsal", 0.1 * quantization)
