"""Which of a profile's measures stands for the damage of quantising a unit."""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.optimize import nnls

from qra_bo.sensitivity.profile import FloatArray, SensitivityProfile
from qra_bo.utils.errors import ConfigError

RISE, DIVERGENCE, BELIEVED = "rise", "divergence", "believed"
_NO_CHANCE = 1e-24
"""Variance (squared nats) below which a rise counts as exact: rounding is no smaller."""
_ROUNDS = 10


def damage_of(profile: SensitivityProfile, name: str) -> FloatArray:
    """Damage of every unit and format (nats), ``L x F``.

    Args:
        profile: Sensitivities.
        name: ``"rise"`` of the loss, the published I_q; ``"divergence"`` from the 16-bit model; or ``"believed"`` of
            both, see ``believed_damage``.

    Raises:
        ConfigError: If there is no such damage.
    """
    if name not in DAMAGES:
        raise ConfigError([unknown_damage(name)])
    return DAMAGES[name](profile)


def unknown_damage(name: str) -> str:
    """What to say of a name that is not in ``DAMAGES``."""
    return f"damage must be one of {', '.join(DAMAGES)}; got {name!r}"


def believed_damage(profile: SensitivityProfile) -> FloatArray:
    """The damage to expect of each unit and format (nats, at least 0), ``L x F``: the rise of the loss, drawn towards
    the KL divergence as far as its standard error leaves room (as it is where that was not measured).

    The rise on little text is mostly chance where damage is small; the divergence sums over all next tokens and hardly
    is. On text that the model predicts well both have one expectation. That their squared distance is
    ``a se^2 + s KL^2`` (``a`` at least 1: a text is never drawn quite as the model expects) is fitted over all units
    and formats by iterated weighted least squares, and of the distance the part ``s KL^2`` of both is kept
    (empirical Bayes). Low formats, whose rise stands out of the noise most, decide about ``s``.
    """
    rise, kl = profile.quantization_sensitivity, np.clip(profile.quantization_kl, 0.0, None)
    if profile.quantization_se is None:
        return np.clip(rise, 0.0, None)
    chance = profile.quantization_se**2
    noisy = chance > _NO_CHANCE
    if not noisy.any():
        return np.clip(rise, 0.0, None)
    apart = rise - kl
    inflation, spread = _variances(apart[noisy] ** 2, chance[noisy], kl[noisy] ** 2)
    room = spread * kl**2
    kept = np.where(noisy, room / np.where(noisy, room + inflation * chance, 1.0), 1.0)
    return np.clip(kl + kept * apart, 0.0, None)


def _variances(squares: FloatArray, chance: FloatArray, kl_squared: FloatArray) -> tuple[float, float]:
    """``a >= 1`` and ``s >= 0`` of ``squares = a chance + s kl_squared`` for ``n`` of each, weighted with the inverse
    variance of Gaussian squares."""
    inflation, spread = 1.0, 0.0
    design = np.column_stack([chance, kl_squared])
    for _ in range(_ROUNDS):
        weights = 1.0 / (inflation * chance + spread * kl_squared)
        beyond, spread = nnls(design * weights[:, None], (squares - chance) * weights)[0].tolist()
        inflation = 1.0 + beyond
    return inflation, spread


DAMAGES: Mapping[str, Callable[[SensitivityProfile], FloatArray]] = {
    RISE: lambda profile: profile.quantization_sensitivity, DIVERGENCE: lambda profile: profile.quantization_kl, BELIEVED: believed_damage}
