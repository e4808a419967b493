"""Search methods of ``conf/method`` and peers by name, with changed options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qra_bo.config import load_config
from qra_bo.config.groups import Target
from qra_bo.config.overrides import CONF

OPTIONS = Path(__file__).parent / "conf"
"""Groups of the configuration beside those of the package: peers as methods, and the emulator as an oracle."""
METHODS, PEERS = CONF / "method", OPTIONS / "method"


def unlearned(target: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options without learned rates: those of the package were learned from the very tables and model
    that benchmarks are of, and peers know nothing of the kind."""
    return {**target, "rates": None} if "rates" in target else dict(target)


def method_target(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return ``_target_`` and options of a peer or method with nested changes, for ``make_searcher``; changes with a
    ``_target_`` are complete. It is ``unlearned`` unless the changes name rates."""
    if changes and "_target_" in changes:
        return dict(changes)
    folder = PEERS if (PEERS / f"{name}.yaml").is_file() else METHODS
    config = load_config(["task=memory", f"method={name}"], str(folder.parent))
    merged = OmegaConf.to_container(OmegaConf.merge(unlearned(config.method.target), dict(changes or {})))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def method_config(name: str, changes: Mapping[str, Any] | None = None) -> Target:
    """Return the ``method`` group of a configuration."""
    return Target.model_validate({"name": name, **method_target(name, changes)})
