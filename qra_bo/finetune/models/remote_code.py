"""Code that comes with a model runs only where that was asked for, and never silently."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)
_announced: set[str] = set()


def may_run(model_cfg: Mapping[str, Any]) -> bool:
    """Whether ``model.trust_remote_code`` was set; if so, that is said once a process and model."""
    if not model_cfg.get("trust_remote_code"):
        return False
    where = str(model_cfg.get("path"))
    if where not in _announced:
        _announced.add(where)
        log.warning("model.trust_remote_code=true: code that comes with %s will run on this machine, with all that you "
                    "may do; pin it with model.revision", where)
    return True
