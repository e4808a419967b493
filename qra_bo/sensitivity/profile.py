"""Sensitivities of every unit: to quantisation, and to the rank of an adapter; and their ``profile.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from qra_bo.space import FloatArray, SearchSpace
from qra_bo.utils.errors import ProfileError
from qra_bo.utils.fields import refusals
from qra_bo.utils.files import replace_text

SCHEMA_VERSION = 1
TYPICAL, FALL = 0.34, 5.0
"""Divergence of a 4-bit SmolLM2-135M from the one in 16 bits (nats; 0.38 on the plays, 0.29 on GSM8K), and the factor
by which a further bit lowers it."""
Stored = Annotated[FloatArray, PlainValidator(lambda values: np.array(values, dtype=np.float64)),
                   PlainSerializer(np.ndarray.tolist)]
"""An array of a record that a journal or a file holds."""
DRAWS, MOST = 6, 1e100
"""Draws of labels for every sequence of a profile from gradients; most of any number, so that squares are finite."""


def gradient_passes(n_layers: int, units: int, formats: int) -> float:
    """Return what a profile from gradients takes, in passes forward: two of these, one backward, which counts as two,
    for every draw and the text's own labels, and a run of the layer for every unit and format."""
    return 2.0 + 2 * (DRAWS + 1) + formats * units / n_layers


@dataclass(frozen=True)
class SensitivityProfile:
    """Sensitivities of ``L`` units for ``F`` formats.

    Raises ``ProfileError`` if shapes disagree, a value is not finite, or a unit or format is named twice.

    Args:
        quantization_sensitivity: I_q, ``L x F``: rise of the calibration loss (nats) by that format of one unit.
        quantization_kl: ``L x F``: mean KL divergence (nats) from the 16-bit model's predictions, likewise.
        rank_sensitivity: I_r, ``L x K``: cumulative sums over the ``K`` leading singular directions of the weight
            gradient's squared singular values, summed over the unit's matrices: the first-order effect of a rank-k
            update (nats per unit of squared step). ``None`` where it was not measured.
        base_loss: Calibration loss of the 16-bit model (nats per token).
        source: Origin, in words.
        quantization_se: ``L x F``: standard error (nats) of ``quantization_sensitivity``; ``None``: not measured.
    """

    units: tuple[str, ...]
    formats: tuple[str, ...]
    quantization_sensitivity: Stored
    quantization_kl: Stored
    rank_sensitivity: Stored | None
    base_loss: float
    source: str
    quantization_se: Stored | None = None
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        n, f = len(self.units), len(self.formats)
        k = 0 if self.rank_sensitivity is None else self.rank_sensitivity.shape[-1]
        for name, want in (("quantization_sensitivity", (n, f)), ("quantization_kl", (n, f)),
                           ("quantization_se", (n, f)), ("rank_sensitivity", (n, k))):
            array = getattr(self, name)
            if array is not None and (array.shape != want or not (abs(array) <= MOST).all()):
                raise ProfileError(f"{name} must hold finite numbers of shape {want}, none beyond {MOST:g}; got shape "
                                   f"{array.shape}")
        if not abs(self.base_loss) <= MOST:
            raise ProfileError(f"base_loss must be a finite number; got {self.base_loss}")
        for what, names in (("unit", self.units), ("format", self.formats)):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ProfileError(f"every {what} must be named once; {twice!r} is named {names.count(twice)} times")

    def require_rank_sensitivity(self) -> FloatArray:
        """``rank_sensitivity``, which must have been measured; raises ``ProfileError`` if the profile holds no I_r."""
        if self.rank_sensitivity is None:
            raise ProfileError(f"the sensitivity profile from {self.source} holds no I_r (rank sensitivity); measure a "
                               "profile with task=profile")
        return self.rank_sensitivity


def typical_profile(space: SearchSpace) -> SensitivityProfile:
    """Return what stands for a profile before one is measured: sensitivities of the size that SmolLM2-135M has, a
    little larger from unit to unit."""
    units = np.linspace(0.9, 1.1, space.n_units)[:, None] * space.unit_share[:, None]
    quantization = TYPICAL * units * FALL ** (4.0 - np.array([fmt.bits for fmt in space.formats]))
    rank = units * np.arange(1, space.ranks[-1] + 1)
    return SensitivityProfile(tuple(u.name for u in space.units), tuple(f.name for f in space.formats), quantization,
                              quantization, rank, 1.0, "typical", 0.1 * quantization)


_PROFILE = TypeAdapter(SensitivityProfile)


def profile_to_json(profile: SensitivityProfile) -> dict[str, Any]:
    """Return the profile as JSON values."""
    return {"schema_version": SCHEMA_VERSION, **_PROFILE.dump_python(profile, mode="json")}


def profile_from_json(data: Mapping[str, Any], where: str) -> SensitivityProfile:
    """Inverse of ``profile_to_json``; ``where`` names the origin of ``data`` in messages. Raises ``ProfileError`` if a
    key is missing, unknown or of the wrong type, or the schema is another."""
    if (version := data.get("schema_version")) != SCHEMA_VERSION:
        raise ProfileError(f"{where}: schema_version is {version!r}, this release reads {SCHEMA_VERSION}")
    try:
        return _PROFILE.validate_python({name: value for name, value in data.items() if name != "schema_version"})
    except (ValidationError, TypeError, OverflowError) as error:
        raise ProfileError(f"{where}: {'; '.join(refusals(error))}") from error


def save_profile(profile: SensitivityProfile, path: Path) -> None:
    """Write ``profile`` as JSON, atomically; numbers survive exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(profile_to_json(profile), allow_nan=False) + "\n")
