"""Search methods of ``conf/method`` by name, with changed options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qra_bo.config import load_config
from qra_bo.config.overrides import CONF

METHODS = CONF / "method"


def method_target(name: str, changes: Mapping[str, Any] | None = None, folder: Path = METHODS) -> dict[str, Any]:
    """Return ``_target_`` and options of ``NAME.yaml`` with nested changes, for ``make_searcher``."""
    config = load_config(["task=memory", f"method={name}"], str(folder.parent))
    merged = OmegaConf.to_container(OmegaConf.merge(config.method.target, dict(changes or {})))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}
