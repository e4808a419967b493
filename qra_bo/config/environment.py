"""Values of a configuration that variables of the environment give: what is written instead of them."""

import os
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from qra_bo.config.resume import flatten
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
    known = flatten(values)
    found = {key: written for key, written in flatten(raw).items()
             if "${" in str(written) and isinstance(known.get(key), str | list)}
    secrets = set()
    for key, written in found.items():
        for name, default in () if key.startswith("model.") else _VARIABLE.findall(str(written)):
            secrets.add(text := os.environ.get(name, default))
            hide(text, f"${{oc.env:{name}}}")
    out.unresolved = {key: written for key, written in found.items()  # also through another key
                      if _VARIABLE.search(str(written)) or any(text and text in str(known[key]) for text in secrets)}
    return out
