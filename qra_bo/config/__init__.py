"""The configuration of a run: schema, composition from ``conf/``, overrides, rules, and what follows from it alone.

It is composed and checked once a run. ``load_config`` loads Hydra; reading a stored configuration does not.
"""

from typing import TYPE_CHECKING, Any

from qra_bo.config.derive import hf_config, make_space, make_spec
from qra_bo.config.schema import NOT_OF_THE_RESULT, RunConfig, config_from_dict

if TYPE_CHECKING:
    from qra_bo.config.compose import load_config

__all__ = ["NOT_OF_THE_RESULT", "RunConfig", "config_from_dict", "hf_config", "load_config", "make_space", "make_spec"]


def __getattr__(name: str) -> Any:
    if name != "load_config":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qra_bo.config.compose import load_config  # Hydra takes half a second, and workers do without it

    return load_config
