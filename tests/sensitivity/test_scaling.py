"""Min-max scaling, tau and Eq. 6 in closed form."""

import numpy as np
import pytest

from qra_bo.sensitivity.importance import fidelity_importance, plasticity_importance, round_to_ladder, warm_start
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.utils.errors import ProfileError
from tests.spaces import make_space

SPACE = make_space(3)


def profile(gain: np.ndarray | None) -> SensitivityProfile:
    damage = np.array([[1.0, 0, 0, 0], [3.0, 0, 0, 0], [2.0, 0, 0, 0]])
    return SensitivityProfile(tuple(u.name for u in SPACE.units), tuple(f.name for f in SPACE.formats), damage,
                              damage, gain, 3.0, "a file")


def test_importances_are_min_max_scaled() -> None:
    np.testing.assert_allclose(fidelity_importance(profile(None)), [0, 1, 0.5], atol=1e-12)
    gain = np.array([[4.0, 5, 5], [1.0, 2, 9], [1.0, 2, 7]])
    np.testing.assert_allclose(plasticity_importance(profile(gain), 2), [1, 0, 0])
    np.testing.assert_allclose(plasticity_importance(profile(gain), 99), [0, 1, 0.5])


def test_a_profile_without_gain_is_not_filled_with_zeros() -> None:
    with pytest.raises(ProfileError, match=r"no\s+I_r"):
        warm_start(SPACE, profile(None))


@pytest.mark.parametrize(("scaled", "value"), [(0.0, 2), (1.0, 8), (0.2, 3), (0.25, 3), (0.26, 4), (0.66, 4),
                                               (0.67, 8)])
def test_rounding_goes_to_the_nearest_value(scaled: float, value: int) -> None:
    ladder = (2, 3, 4, 8)  # 2 + 6 x: ties at 2.5, 3.5 (x = 0.25) and 6 (x = 2/3) go down
    assert ladder[int(round_to_ladder(np.array(scaled), ladder))] == value


def test_formats_of_one_bit_width_resolve_to_the_first() -> None:
    assert round_to_ladder(np.array([0.0, 0.5, 1.0]), (2, 4, 4, 8)).tolist() == [0, 1, 3]


def test_eq_6() -> None:
    gain = np.array([[1.0] * 8, [2.0] * 8, [3.0] * 8])
    # I_q = 0, 1, .5 -> bits 2, 8, 5 -> 4; I_r = 0, .5, 1 -> ranks 1, 4.5 -> 4, 8.
    assert warm_start(SPACE, profile(gain)).tolist() == [0, 3, 2, 0, 2, 3]
