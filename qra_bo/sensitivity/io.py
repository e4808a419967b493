"""Sensitivities as JSON: in the journal, and in the files that ``task=profile`` writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.utils.errors import ProfileError
from qra_bo.utils.fields import refusals
from qra_bo.utils.files import replace_text

SCHEMA_VERSION = 1
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
        said = "; ".join(refusals(error)) if isinstance(error, ValidationError) else error
        raise ProfileError(f"{where}: {said}") from error


def save_profile(profile: SensitivityProfile, path: Path) -> None:
    """Write ``profile`` as JSON, atomically; numbers survive exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(profile_to_json(profile), allow_nan=False) + "\n")
