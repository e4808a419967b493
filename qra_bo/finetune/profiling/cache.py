"""Measured sensitivity profiles kept on disk: by model, data, formats and the code that measures."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qra_bo.sensitivity.io import profile_from_json, profile_to_json
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.utils.errors import ProfileError
from qra_bo.utils.files import replace_text, strict_json

log = logging.getLogger(__name__)
SAMPLE_BYTES = 4096


def cache_folder() -> Path:
    """``$QRA_BO_CACHE``, or ``qra_bo`` below the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qra_bo"
    return Path(os.environ.get("QRA_BO_CACHE") or default) / "profiles"


def weights_fingerprint(model: Any) -> str:
    """Hash of every parameter's name, shape, type and first bytes: quick, and another model has another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)[: SAMPLE_BYTES // tensor.element_size()].cpu().float()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.numpy().tobytes())
    return digest.hexdigest()


def packing_sources() -> list[Path]:
    """Files of the code that decides about packed weights: what is made of these depends on them."""
    here = Path(__file__).parents[1]
    return [here / "profiling" / "inputs.py", *sorted((here / "quantization").glob("*.py"))]


def code_fingerprint() -> str:
    """Hash of the sources that a measured profile depends on."""
    here = Path(__file__).parents[1]
    sources = [here / "profiling" / "measure.py", here / "profiling" / "gradients.py", here / "models" / "prefix.py",
               here / "training" / "loss.py", *packing_sources()]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


class ProfileCache:
    """One file for each key; what can't be read or written is measured anew, never an error.

    Args:
        folder: Where the files lie.
        facts: JSON values that determine the profile.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        text = json.dumps({**facts, "code": code_fingerprint()}, sort_keys=True)
        self.path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def load(self, units: Iterable[str]) -> tuple[SensitivityProfile, dict[str, Any]] | None:
        """The profile and what it cost, or ``None``."""
        try:
            stored = strict_json(self.path.read_text(encoding="utf-8"))
            profile = profile_from_json(stored["profile"], str(self.path))
            cost = {key: int(stored["cost"][key]) for key in ("training_tokens", "forward_tokens")}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ProfileError) as error:
            log.warning("the cached sensitivity profile %s can't be used and is measured anew: %s", self.path, error)
            return None
        return (profile, cost) if profile.units == tuple(units) else None

    def save(self, profile: SensitivityProfile, cost: Mapping[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.path, json.dumps({"profile": profile_to_json(profile), "cost": dict(cost)}))
        except OSError as error:
            log.warning("the sensitivity profile can't be cached in %s: %s", self.path.parent, error)
