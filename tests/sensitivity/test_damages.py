"""What a profile leads to expect, between a noisy measurement and a clean one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qra_bo.sensitivity.importance import shrunk_sensitivity
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import FloatArray


def profile_of(damage: FloatArray, kl: FloatArray, se: FloatArray | None) -> SensitivityProfile:
    n_units, n_formats = damage.shape
    return SensitivityProfile(tuple(f"u{i}" for i in range(n_units)), tuple(f"f{i}" for i in range(n_formats)), damage,
                              kl, None, 1.0, "a test", se)


def simulated(spread: float, noise: float, seed: int = 0, n: int = 400,
              inflation: float = 1.0) -> tuple[SensitivityProfile, FloatArray]:
    """True damages around the divergence, and a profile that measured them with more noise than it says."""
    rng = np.random.default_rng(seed)
    kl = rng.lognormal(-3.0, 1.0, (n, 3))
    true = kl * (1.0 + spread * rng.standard_normal(kl.shape))
    se = noise * np.sqrt(kl) * rng.uniform(0.5, 1.5, kl.shape)
    return profile_of(true + inflation * se * rng.standard_normal(kl.shape), kl, se), true


def test_two_units_by_hand() -> None:
    # Unit 1 (kl 0) says that chance is 4 times its square; unit 2 then that 16 = 4 + 3 * 2^2, of which 3/4 is kept.
    found = shrunk_sensitivity(profile_of(np.array([[2.0], [6.0]]), np.array([[0.0], [2.0]]), np.ones((2, 1))))
    np.testing.assert_allclose(found, [[0.0], [2.0 + 0.75 * 4.0]])


def test_distance_within_standard_errors_is_not_kept() -> None:
    kl = np.array([[1.0, 0.5], [2.0, 0.25]])
    np.testing.assert_allclose(shrunk_sensitivity(profile_of(kl + 0.5, kl, np.ones((2, 2)))), kl)


def test_without_noise_it_is_what_was_measured() -> None:
    damage, kl = np.array([[0.5, -0.1], [0.2, 0.0]]), np.array([[0.4, 0.1], [0.3, 0.2]])
    for se in (None, np.zeros((2, 2))):
        np.testing.assert_array_equal(shrunk_sensitivity(profile_of(damage, kl, se)), np.clip(damage, 0.0, None))


def test_a_format_that_changes_nothing_has_no_damage() -> None:
    damage, kl, se = np.array([[0.3, 0.0]]), np.array([[0.2, 0.0]]), np.array([[0.1, 0.0]])
    assert shrunk_sensitivity(profile_of(damage, kl, se))[0, 1] == 0.0


@pytest.mark.parametrize("inflation", [1.0, 1.6])
@pytest.mark.parametrize(("spread", "noise"), [(0.3, 0.05), (0.3, 0.3), (0.1, 1.0), (1.0, 0.3)])
def test_it_is_nearer_to_the_truth_than_either_alone(spread: float, noise: float, inflation: float) -> None:
    profile, true = simulated(spread, noise, inflation=inflation)

    def error(values: FloatArray) -> float:
        return float((((values - true) / profile.quantization_kl) ** 2).mean())  # relative to the size

    rise, kl = profile.quantization_sensitivity, profile.quantization_kl
    assert error(shrunk_sensitivity(profile)) < 1.02 * min(error(rise), error(kl))


def test_fewer_formats_are_believed_alike() -> None:
    profile, _ = simulated(0.3, 0.3, inflation=1.6)
    whole = shrunk_sensitivity(profile)[:, [2, 0]]
    rise, kl, se = (of[:, [2, 0]] for of in (profile.quantization_sensitivity, profile.quantization_kl,
                                             np.asarray(profile.quantization_se)))
    part = shrunk_sensitivity(profile_of(rise, kl, se))
    apart = np.abs(profile.quantization_sensitivity - profile.quantization_kl)
    assert float(np.abs(part - whole).mean()) < 0.05 * float(apart.mean())


@given(st.integers(0, 10_000), st.floats(0.0, 2.0), st.floats(0.0, 5.0))
def test_it_lies_between_both_and_is_no_less_than_nothing(seed: int, spread: float, noise: float) -> None:
    profile, _ = simulated(spread, noise, seed, n=5)
    believed = shrunk_sensitivity(profile)
    rise, kl = profile.quantization_sensitivity, profile.quantization_kl
    low, high = np.minimum(rise, kl), np.maximum(rise, kl)
    assert (believed >= np.clip(low, 0.0, None) - 1e-12).all()
    assert (believed <= np.clip(high, 0.0, None) + 1e-12).all()
