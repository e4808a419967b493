"""Sensitivities as JSON: in the journal, and in the files that ``task=profile`` writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.utils.errors import ProfileError
from qra_bo.utils.files import replace_text

_Names = Annotated[list[str], Field(min_length=1)]
_Matrix = Annotated[list[Annotated[list[float], Field(min_length=1)]], Field(min_length=1)]


class _ProfileFile(BaseModel):
    """Fields of ``profile.json``, as in ``SensitivityProfile``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    schema_version: Literal[1]
    units: _Names
    formats: _Names
    quantization_sensitivity: _Matrix
    quantization_kl: _Matrix
    quantization_se: _Matrix | None = None
    rank_sensitivity: _Matrix | None
    base_loss: float
    source: str


def profile_to_json(profile: SensitivityProfile) -> dict[str, Any]:
    """Return the profile as JSON values."""
    values = {name: getattr(profile, name) for name in _ProfileFile.model_fields if name != "schema_version"}
    return {"schema_version": 1, **{name: value.tolist() if isinstance(value, np.ndarray) else
                                    list(value) if isinstance(value, tuple) else value
                                    for name, value in values.items()}}


def profile_from_json(data: Mapping[str, Any], where: str) -> SensitivityProfile:
    """Inverse of ``profile_to_json``; ``where`` names the origin of ``data`` in messages. Raises ``ProfileError`` if a
    key is missing, unknown or of the wrong type, or the schema is another."""
    try:
        found = _ProfileFile.model_validate(data)
    except ValidationError as error:
        said = {"missing": "is missing", "extra_forbidden": "is unknown"}
        problems = dict.fromkeys(f"{str(e['loc'][0])!r} {said.get(e['type'], e['msg'])}" for e in error.errors())
        raise ProfileError(f"{where}: {'; '.join(problems)}; expected the keys {list(_ProfileFile.model_fields)}") \
            from error
    arrays: dict[str, Any] = {}
    for name in ("quantization_sensitivity", "quantization_kl", "quantization_se", "rank_sensitivity"):
        rows = getattr(found, name)
        if rows is not None and len({len(row) for row in rows}) > 1:
            raise ProfileError(f"{where}: {name!r} must have rows of one length")
        arrays[name] = None if rows is None else np.array(rows, dtype=np.float64)
    return SensitivityProfile(units=tuple(found.units), formats=tuple(found.formats), base_loss=found.base_loss,
                              source=found.source, **arrays)


def save_profile(profile: SensitivityProfile, path: Path) -> None:
    """Write ``profile`` as JSON, atomically; numbers survive exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(profile_to_json(profile), allow_nan=False) + "\n")
