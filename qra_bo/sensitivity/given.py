"""A profile from a file, in place of a measurement: fitted to a space, and never filled in where it lacks something."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qra_bo.sensitivity.io import MeasuredDamage, coarsen_profile, load_measured_damage, load_profile, read_object
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Unit
from qra_bo.utils.errors import ProfileError


def read_given(path: Path) -> SensitivityProfile | MeasuredDamage:
    """A profile that ``task=profile`` wrote, or a file of measured damage that others publish.

    Raises:
        ProfileError: If the file can't be read or is malformed.
    """
    return load_measured_damage(path) if "loss" in read_object(path) else load_profile(path)


def given_profile(path: Path, units: Sequence[Unit], formats: Sequence[str]) -> SensitivityProfile:
    """The profile in ``path`` for ``units`` and ``formats``; its source names the file and its SHA-256.

    Raises:
        ProfileError: If it lacks a unit, a format or whole quantities that a search needs; the message says which.
    """
    given = read_given(path)
    if isinstance(given, MeasuredDamage):
        raise ProfileError(
            f"{path} ({given.source}) holds one damage for each of {len(given.units)} modules and names no storage "
            "format; a search needs the damage by format, and the file also lacks quantization_kl (KL divergence), gain "
            "(I_r, what adapter capacity may gain) and base_loss. Nothing is made up for them: measure a profile with "
            "task=profile, or leave sensitivity.path out")
    missing = [f for f in formats if f not in given.formats]
    if missing:
        raise ProfileError(f"the profile in {path} lacks the formats {missing} of this search (it holds "
                           f"{list(given.formats)}); measure one with task=profile, or choose bits that it holds")
    if given.units != tuple(u.name for u in units):
        given = coarsen_profile(given, units)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(given.of_formats(formats), source=f"{given.source} ({path.name}, sha256 {digest})")
