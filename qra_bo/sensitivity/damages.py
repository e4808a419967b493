"""Measures of a profile that can stand for the quantisation sensitivity of a unit."""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.optimize import nnls

from qra_bo.sensitivity.profile import FloatArray, SensitivityProfile
from qra_bo.utils.errors import ConfigError

RISE, DIVERGENCE, BELIEVED = "rise", "divergence", "believed"
_EXACT = 1e-24
"""Variance (squared nats) below which a rise of the loss counts as exact: rounding is no smaller."""
_ROUNDS = 10


def damage_of(profile: SensitivityProfile, name: str) -> FloatArray:
    """Quantisation sensitivity of every unit and format (nats), ``L x F``.

    Args:
        profile: Sensitivities.
        name: ``"rise"`` of the loss, the published I_q; ``"divergence"`` from the 16-bit model; or ``"believed"``, an
            estimate from both, see ``believed_damage``.

    Raises:
        ConfigError: If there is no such measure.
    """
    if name not in DAMAGES:
        raise ConfigError(unknown_damage(name))
    return DAMAGES[name](profile)


def unknown_damage(name: str) -> str:
    """Return the message for a name that is not in ``DAMAGES``."""
    return f"damage must be one of {', '.join(DAMAGES)}; got {name!r}"


def believed_damage(profile: SensitivityProfile) -> FloatArray:
    """Estimate the sensitivity of each unit and format (nats, at least 0), ``L x F``: the rise of the loss, shrunk
    towards the KL divergence according to its standard error (not shrunk where that was not measured).

    On little text a small rise of the loss is mostly noise; the divergence sums over all next tokens and has little.
    On text that the model predicts well both have one expectation. The model of their squared distance,
    ``a se^2 + s KL^2`` (``a`` at least 1: no text is drawn quite as the model expects), is fitted over all units and
    formats by iterated weighted least squares, and of the distance the share of ``s KL^2`` in both is kept
    (empirical Bayes). Low formats, whose rise exceeds the noise most, decide about ``s``.
    """
    rise, kl = profile.quantization_sensitivity, np.clip(profile.quantization_kl, 0.0, None)
    variance = np.zeros_like(rise) if profile.quantization_se is None else profile.quantization_se**2
    noisy = variance > _EXACT
    if not noisy.any():
        return np.clip(rise, 0.0, None)
    apart = rise - kl
    inflation, spread = _variances(apart[noisy] ** 2, variance[noisy], kl[noisy] ** 2)
    room = spread * kl**2
    kept = np.where(noisy, room / np.where(noisy, room + inflation * variance, 1.0), 1.0)
    return np.clip(kl + kept * apart, 0.0, None)


def _variances(squares: FloatArray, variance: FloatArray, kl_squared: FloatArray) -> tuple[float, float]:
    """``a >= 1`` and ``s >= 0`` of ``squares = a variance + s kl_squared`` for ``n`` of each, weighted with the inverse
    variance of Gaussian squares."""
    inflation, spread = 1.0, 0.0
    design = np.column_stack([variance, kl_squared])
    for _ in range(_ROUNDS):
        weights = 1.0 / (inflation * variance + spread * kl_squared)
        beyond, spread = nnls(design * weights[:, None], (squares - variance) * weights)[0].tolist()
        inflation = 1.0 + beyond
    return inflation, spread


DAMAGES: Mapping[str, Callable[[SensitivityProfile], FloatArray]] = {
    RISE: lambda profile: profile.quantization_sensitivity, DIVERGENCE: lambda profile: profile.quantization_kl,
    BELIEVED: believed_damage}
