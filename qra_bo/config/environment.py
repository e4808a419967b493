"""Values of a configuration that variables of the environment give: what is written instead of them."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from qra_bo.utils.redact import hide

_VARIABLE = re.compile(r"\$\{oc\.env:\s*([^},\s]+)\s*(?:,\s*([^}]*?)\s*)?\}")


class Resolved(dict[str, Any]):
    """Values of a composed configuration, interpolations resolved.

    Attributes:
        unresolved: By dotted key, the interpolation of every text, or list, that variables of the environment give.
    """

    unresolved: Mapping[str, Any]


def resolved(composed: DictConfig | ListConfig) -> Resolved:
    """Return the values of ``composed``; texts of the environment are hidden from now on in all that is written.

    The model alone stays readable: a run's folder could not be loaded without it.
    """
    values, raw = (OmegaConf.to_container(composed, resolve=resolve) for resolve in (True, False))
    out = Resolved({str(key): value for key, value in values.items()} if isinstance(values, dict) else {})
    found = {key: (written, value) for key, written, value in _leaves(raw, values, "")
             if "${" in str(written) and isinstance(value, str | list)}
    secrets = set()
    for key, (written, _) in found.items():
        for name, default in () if key.startswith("model.") else _VARIABLE.findall(str(written)):
            secrets.add(text := os.environ.get(name, default))
            hide(text, f"${{oc.env:{name}}}")
    out.unresolved = {key: written for key, (written, value) in found.items()  # also through another key
                      if _VARIABLE.search(str(written)) or any(text and text in str(value) for text in secrets)}
    return out


def _leaves(raw: Any, values: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key, value as written and value of everything below two nested mappings."""
    if not isinstance(raw, dict):
        yield prefix.removesuffix("."), raw, values
        return
    for key, inner in raw.items():
        yield from _leaves(inner, values[key], f"{prefix}{key}.")
