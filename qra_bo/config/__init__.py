"""The configuration of a run: schema, composition from ``conf/``, overrides, rules, and what follows from it alone.

It is composed and checked once a run. ``load_config`` loads Hydra; reading a stored configuration does not.
"""

from typing import TYPE_CHECKING

from qra_bo.config.derive import gptq_sequences, gptq_tokens, hf_config, make_space, make_spec
from qra_bo.config.schema import RunConfig, config_from_dict
from qra_bo.utils.lazy import lazy_names

if TYPE_CHECKING:
    from qra_bo.config.compose import load_config, named_efforts

__all__ = ["RunConfig", "config_from_dict", "gptq_sequences", "gptq_tokens", "hf_config", "load_config", "make_space",
           "make_spec", "named_efforts"]

__getattr__ = lazy_names(__name__, dict.fromkeys(("load_config", "named_efforts"), "compose"))
# Hydra takes half a second, and workers do without it
