"""A profile made up to try a search method's options on, before the real one is measured; it is never searched with."""

import numpy as np

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import SearchSpace


def rehearsal_profile(space: SearchSpace) -> SensitivityProfile:
    """Damage that falls along the formats and gain that grows with the rank, different in every unit."""
    n_formats, largest = len(space.formats), space.ranks.values[-1]
    units = np.arange(1, space.n_units + 1, dtype=np.float64)[:, None]
    damage = units * np.arange(n_formats, 0, -1)
    gain = units * np.arange(1, largest + 1)
    return SensitivityProfile(tuple(u.name for u in space.units), tuple(f.name for f in space.formats), damage, damage,
                              gain, 1.0, "a rehearsal", 0.1 * damage)
