"""Errors of the user's own searcher, oracle or listener, told from bugs of this program."""

import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig

from qra_bo.utils.errors import ConfigError, UserError

_PACKAGES = ("qra_bo", "surrogates")


def from_own_part(error: Exception, composed: DictConfig) -> UserError | None:
    """Return ``error`` as that of the part of the configuration whose code raised it, with file and line; ``None``
    where no part from outside this program did."""
    parts = {name.partition(".")[0]: (key, name) for key, name in _targets(composed)}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        root = str(frame.f_globals.get("__name__")).partition(".")[0]
        if root in parts and root not in _PACKAGES:
            key, name = parts[root]
            code = frame.f_code
            where = f"{code.co_filename}, line {line}, in {code.co_qualname}"
            return ConfigError(f"{key}={name} raised {type(error).__name__}: {error} ({where}); mend that code, or "
                               f"choose another {key.partition('.')[0]}.")
    return None


def _targets(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return the dotted keys of everything that is named by a dotted path, and the path."""
    for key in node:
        name, value = f"{prefix}{key}", node[key]
        if isinstance(value, Mapping):
            yield from _targets(value, f"{name}.")
        elif isinstance(value, str) and "." in value and key == "_target_":
            yield name, value
