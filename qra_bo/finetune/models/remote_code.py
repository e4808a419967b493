"""Permission to run code that comes with a model: only on request, and never silently."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)
_announced: set[str] = set()


def may_run(model_cfg: Mapping[str, Any]) -> bool:
    """Whether ``model.trust_remote_code`` is set; if so, a warning is logged once per process and model."""
    if not model_cfg.get("trust_remote_code"):
        return False
    where = str(model_cfg.get("path"))
    if where not in _announced:
        _announced.add(where)
        log.warning("model.trust_remote_code=true: code that comes with %s will run on this machine, with all that you "
                    "may do; pin it with model.revision", where)
    return True
