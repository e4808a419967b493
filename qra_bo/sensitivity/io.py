"""Files of sensitivities: our own profiles, strictly, and measured damage that others publish."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.sensitivity.profile import FloatArray, SensitivityProfile
from qra_bo.space import Unit
from qra_bo.utils.errors import ProfileError
from qra_bo.utils.files import replace_text, strict_json

SCHEMA_VERSION = 1
_KEYS = ("schema_version", "units", "formats", "quantization_sensitivity", "quantization_kl", "rank_sensitivity", "base_loss", "source")
_LATER_KEYS = ("quantization_se",)
"""Of later releases: files without them are read too."""
_MEASURED_KEYS = ("model_name", "dataset", "loss")


def profile_to_json(profile: SensitivityProfile) -> dict[str, Any]:
    """JSON values only."""
    return {"schema_version": SCHEMA_VERSION, "units": list(profile.units), "formats": list(profile.formats),
            "quantization_sensitivity": profile.quantization_sensitivity.tolist(), "quantization_kl": profile.quantization_kl.tolist(),
            "rank_sensitivity": None if profile.rank_sensitivity is None else profile.rank_sensitivity.tolist(), "base_loss": profile.base_loss,
            "source": profile.source,
            **({} if profile.quantization_se is None else {"quantization_se": profile.quantization_se.tolist()})}


def profile_from_json(data: Mapping[str, Any], where: str) -> SensitivityProfile:
    """Inverse of ``profile_to_json``; nothing that is missing is filled in.

    Args:
        data: What was read.
        where: Name of its origin for messages.

    Raises:
        ProfileError: If a key is missing, unknown or of the wrong type, or the schema is another.
    """
    _check_keys(data, _KEYS, (*_KEYS, *_LATER_KEYS), where)
    if data["schema_version"] != SCHEMA_VERSION:
        raise ProfileError(f"{where} has schema_version {data['schema_version']!r}; this release reads "
                           f"{SCHEMA_VERSION}: measure the profile again with task=profile")
    gain, se = (None if data.get(key) is None else _matrix(data[key], f"{where}: {key!r}")
                for key in ("rank_sensitivity", "quantization_se"))
    return SensitivityProfile(_names(data["units"], f"{where}: 'units'"),
                              _names(data["formats"], f"{where}: 'formats'"),
                              _matrix(data["quantization_sensitivity"], f"{where}: 'damage'"),
                              _matrix(data["quantization_kl"], f"{where}: 'quantization_kl'"), gain,
                              _number(data["base_loss"], f"{where}: 'base_loss'"),
                              _text(data["source"], f"{where}: 'source'"), se)


def save_profile(profile: SensitivityProfile, path: Path) -> None:
    """Write ``profile`` as JSON, atomically; numbers survive exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(profile_to_json(profile), allow_nan=False) + "\n")


def load_profile(path: Path) -> SensitivityProfile:
    """Read what ``save_profile`` wrote.

    Raises:
        ProfileError: If the file can't be read, or a key is missing, unknown or of the wrong type.
    """
    return profile_from_json(read_object(path), str(path))


@dataclass(frozen=True)
class MeasuredDamage:
    """One published damage per unit. Such files name no format and hold neither I_r (gain) nor KL nor a base loss.

    Args:
        units: Names of the units.
        loss: What quantising that unit costs, in the file's own measure, ``L``.
        source: Where it comes from, in words.
    """

    units: tuple[str, ...]
    loss: FloatArray
    source: str

    def coarsen(self, units: Sequence[Unit]) -> "MeasuredDamage":
        """Sums over the linears of each of the coarser ``units``.

        Raises:
            ProfileError: If a linear of ``units`` was not measured.
        """
        return MeasuredDamage(tuple(u.name for u in units),
                              _sum_rows(self.loss[:, None], self.units, units, self.source)[:, 0], self.source)

    def profile(self, fmt: str, *, base_loss: float, quantization_kl: FloatArray) -> SensitivityProfile:
        """A profile of the one format ``fmt`` with ``gain=None``; what the file lacks has to be given.

        Args:
            fmt: The storage format that the damage is taken for.
            base_loss: Calibration loss of the 16-bit model (nats per token).
            quantization_kl: ``L``, KL divergence (nats).

        Raises:
            ProfileError: If ``quantization_kl`` does not hold one finite number a unit.
        """
        return SensitivityProfile(self.units, (fmt,), self.loss[:, None], quantization_kl[:, None], None, base_loss,
                                  f"{self.source} (damage alone: no I_r)")


def load_measured_damage(path: Path, prefix: str = "model.layers.") -> MeasuredDamage:
    """Read a file with the keys ``model_name``, ``dataset`` and ``loss`` (damage by module, e.g. ``0.mlp.up_proj``).

    Args:
        path: The file.
        prefix: What its module names lack to be module paths of the model.

    Raises:
        ProfileError: If the file can't be read, or a key is missing or of the wrong type.
    """
    data = read_object(path)
    _check_keys(data, _MEASURED_KEYS, (*_MEASURED_KEYS, "time_elapsed"), str(path))
    losses = data["loss"]
    if not isinstance(losses, dict) or not losses:
        raise ProfileError(f"{path}: 'loss' must be an object of damage by module name; got {type(losses).__name__}")
    values = np.array([_number(v, f"{path}: 'loss' of {name!r}") for name, v in losses.items()])
    return MeasuredDamage(tuple(prefix + name for name in losses), values,
                          f"{_text(data['model_name'], f'{path}: model_name')} on "
                          f"{_text(data['dataset'], f'{path}: dataset')} ({path.name})")


def coarsen_profile(profile: SensitivityProfile, units: Sequence[Unit]) -> SensitivityProfile:
    """A profile of single linears summed to coarser units: to first order damage and gain add up, and the squares of
    standard errors as though they were independent.

    Raises:
        ProfileError: If a linear of ``units`` was not measured.
    """
    damage, kl = (_sum_rows(a, profile.units, units, profile.source) for a in (profile.quantization_sensitivity, profile.quantization_kl))
    gain = None if profile.rank_sensitivity is None else _sum_rows(profile.rank_sensitivity, profile.units, units, profile.source)
    se = None if profile.quantization_se is None else np.sqrt(_sum_rows(profile.quantization_se**2, profile.units, units,
                                                                  profile.source))
    return SensitivityProfile(tuple(u.name for u in units), profile.formats, damage, kl, gain, profile.base_loss,
                              f"{profile.source}, summed from {len(profile.units)} to {len(units)} units", se)


def _sum_rows(values: FloatArray, names: Sequence[str], units: Sequence[Unit], source: str) -> FloatArray:
    index = {name: i for i, name in enumerate(names)}
    missing = [m.name for u in units for m in u.linears if m.name not in index]
    if missing:
        raise ProfileError(f"the sensitivities from {source} lack {len(missing)} of the model's linears, the first "
                           f"being {missing[0]!r} (they hold e.g. {names[0]!r}); use a profile of this model")
    return np.stack([values[[index[m.name] for m in u.linears]].sum(axis=0) for u in units])


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ProfileError: If the file can't be read or holds anything else.
    """
    try:
        data = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"the sensitivity file {path} can't be read: {error.strerror}; give the path of a profile, "
                           "or measure one with task=profile") from error
    except ValueError as error:
        raise ProfileError(f"the sensitivity file {path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ProfileError(f"{path} must hold a JSON object; got {type(data).__name__}")
    return data


def _check_keys(data: Mapping[str, Any], required: Sequence[str], known: Sequence[str], where: str) -> None:
    missing, unknown = [k for k in required if k not in data], sorted(set(data) - set(known))
    if missing or unknown:
        said = [f"the keys {missing} are missing"] if missing else []
        said += [f"the keys {unknown} are unknown"] if unknown else []
        raise ProfileError(f"{where}: {' and '.join(said)}; expected {list(required)}")


def _names(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ProfileError(f"{where} must be a non-empty list of names; got {_shorten(value)}")
    return tuple(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ProfileError(f"{where} must be text; got {_shorten(value)}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProfileError(f"{where} must be a number; got {_shorten(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ProfileError(f"{where} must be a number that floats can hold; got one of {len(str(value))} digits"
                           ) from error


def _matrix(value: Any, where: str) -> FloatArray:
    if not isinstance(value, list) or not value or not all(isinstance(row, list) for row in value):
        raise ProfileError(f"{where} must be a list of rows of numbers; got {_shorten(value)}")
    rows = [[_number(v, where) for v in row] for row in value]
    if len({len(row) for row in rows}) > 1:
        raise ProfileError(f"{where} must have rows of one length; got lengths {sorted({len(r) for r in rows})}")
    return np.array(rows, dtype=np.float64)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
