"""Base models: downloaded, loaded without pickles, with a fast attention kernel, on the device or in host memory."""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"load_base": "load", "cast_parameters": "load", "fetch": "hub", "small_files": "hub",
          "check_model_files": "files", "use_fast_attention": "load", "HostLinear": "host_linear",
          "keep_on_host": "host_linear", "starting_at": "activations", "use_checkpointing": "checkpointing"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
