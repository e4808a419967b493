"""Search methods of ``conf/method`` by name, with changed options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

METHODS = Path(__file__).parents[1] / "conf" / "method"


def method_target(name: str, changes: Mapping[str, Any] | None = None, folder: Path = METHODS) -> dict[str, Any]:
    """Return ``_target_`` and options of ``NAME.yaml`` with nested changes, for ``make_searcher``."""
    group = cast(DictConfig, OmegaConf.load(folder / f"{name}.yaml"))
    options = OmegaConf.masked_copy(group, [str(key) for key in group if key not in ("name", "params")])
    merged = OmegaConf.merge(options, group.get("params", {}), DictConfig(dict(changes or {})))
    found: dict[str, Any] = OmegaConf.to_container(merged)  # type: ignore[assignment]
    return found
