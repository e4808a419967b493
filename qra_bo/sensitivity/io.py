"""Sensitivities as JSON: in the journal, and in the files that ``task=profile`` writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.utils.errors import ProfileError
from qra_bo.utils.files import replace_text

_Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
_Matrix = Annotated[list[Annotated[list[float], Field(min_length=1)]], Field(min_length=1),
                    AfterValidator(lambda rows: np.array(rows, dtype=np.float64)), PlainSerializer(np.ndarray.tolist)]


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
    return _ProfileFile.model_construct(schema_version=1, **vars(profile)).model_dump(mode="json")


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
    return SensitivityProfile(**{name: value for name, value in found if name != "schema_version"})


def save_profile(profile: SensitivityProfile, path: Path) -> None:
    """Write ``profile`` as JSON, atomically; numbers survive exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(profile_to_json(profile), allow_nan=False) + "\n")
