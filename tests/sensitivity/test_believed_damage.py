"""What a profile leads to expect, between a noisy measurement and a clean one."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qra_bo.sensitivity.profile import FloatArray, SensitivityProfile


def profile_of(damage: FloatArray, kl: FloatArray, se: FloatArray | None) -> SensitivityProfile:
    n_units, n_formats = damage.shape
    return SensitivityProfile(tuple(f"u{i}" for i in range(n_units)), tuple(f"f{i}" for i in range(n_formats)), damage,
                              kl, None, 1.0, "a test", se)


def simulated(spread: float, noise: float, seed: int = 0, n: int = 400) -> tuple[SensitivityProfile, FloatArray]:
    """True damages around the divergence, and a profile that measured them with noise."""
    rng = np.random.default_rng(seed)
    kl = rng.lognormal(-3.0, 1.0, (n, 3))
    true = kl * (1.0 + spread * rng.standard_normal(kl.shape))
    se = noise * np.sqrt(kl) * rng.uniform(0.5, 1.5, kl.shape)
    return profile_of(true + se * rng.standard_normal(kl.shape), kl, se), true


def test_two_numbers_by_hand() -> None:
    # One unit of kl 1 and se 1 that lies 3 apart: spread = (9 - 1) / 1, 8/9 of the distance is kept.
    found = profile_of(np.array([[4.0]]), np.array([[1.0]]), np.array([[1.0]])).believed_damage()
    np.testing.assert_allclose(found, [[1.0 + 8 / 9 * 3.0]])
    # Within its standard error nothing of the distance is kept.
    found = profile_of(np.array([[0.5]]), np.array([[1.0]]), np.array([[1.0]])).believed_damage()
    np.testing.assert_allclose(found, [[1.0]])


def test_without_noise_it_is_what_was_measured() -> None:
    damage, kl = np.array([[0.5, -0.1], [0.2, 0.0]]), np.array([[0.4, 0.1], [0.3, 0.2]])
    for se in (None, np.zeros((2, 2))):
        found = profile_of(damage, kl, se).believed_damage()
        np.testing.assert_allclose(found, np.clip(damage, 0.0, None), atol=1e-15)


def test_a_format_that_changes_nothing_has_no_damage() -> None:
    damage, kl, se = np.array([[0.3, 0.0]]), np.array([[0.2, 0.0]]), np.array([[0.1, 0.0]])
    assert profile_of(damage, kl, se).believed_damage()[0, 1] == 0.0


def test_it_is_nearer_to_the_truth_than_either_alone() -> None:
    for spread, noise in ((0.3, 0.05), (0.3, 0.3), (0.1, 1.0), (1.0, 0.3)):
        profile, true = simulated(spread, noise)
        weights = 1.0 / profile.damage_kl**2  # errors relative to the size

        def error(values: FloatArray, true: FloatArray = true, weights: FloatArray = weights) -> float:
            return float((weights * (values - true) ** 2).mean())

        believed = error(profile.believed_damage())
        assert believed < 1.02 * min(error(profile.damage), error(profile.damage_kl)), (spread, noise)


@given(st.integers(0, 10_000), st.floats(0.0, 2.0), st.floats(0.0, 5.0))
def test_it_lies_between_both_and_is_no_less_than_nothing(seed: int, spread: float, noise: float) -> None:
    profile, _ = simulated(spread, noise, seed, n=5)
    believed = profile.believed_damage()
    low, high = np.minimum(profile.damage, profile.damage_kl), np.maximum(profile.damage, profile.damage_kl)
    assert (believed >= np.clip(low, 0.0, None) - 1e-12).all()
    assert (believed <= np.clip(high, 0.0, None) + 1e-12).all()
    again = replace(profile, damage_se=np.asarray(profile.damage_se) * 0.0).believed_damage()
    np.testing.assert_allclose(again, np.clip(profile.damage, 0.0, None), rtol=1e-12, atol=1e-15)


def test_formats_take_their_errors_along() -> None:
    profile, _ = simulated(0.3, 0.3, n=4)
    assert profile.damage_se is not None
    chosen = profile.of_formats(["f2", "f0"])
    np.testing.assert_array_equal(np.asarray(chosen.damage_se), profile.damage_se[:, [2, 0]])
