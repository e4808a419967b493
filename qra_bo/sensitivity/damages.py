"""Which of a profile's measures stands for the damage of quantising a unit."""

from collections.abc import Callable, Mapping

from qra_bo.errors import ConfigError
from qra_bo.sensitivity.profile import FloatArray, SensitivityProfile

RISE, DIVERGENCE, BELIEVED = "rise", "divergence", "believed"
DAMAGES: Mapping[str, Callable[[SensitivityProfile], FloatArray]] = {
    RISE: lambda profile: profile.damage, DIVERGENCE: lambda profile: profile.damage_kl,
    BELIEVED: lambda profile: profile.believed_damage()}


def damage_of(profile: SensitivityProfile, name: str) -> FloatArray:
    """Damage of every unit and format (nats), ``L x F``.

    Args:
        profile: Sensitivities.
        name: ``"rise"`` of the loss, the published I_q; ``"divergence"`` from the 16-bit model; or ``"believed"`` of
            both, see ``SensitivityProfile.believed_damage``.

    Raises:
        ConfigError: If there is no such damage.
    """
    if name not in DAMAGES:
        raise ConfigError([f"damage must be one of {', '.join(DAMAGES)}; got {name!r}"])
    return DAMAGES[name](profile)
