"""Exports of a finished run: its own loader, and one target for each trainer, quantiser and server.

``load.load`` (``qra_bo.load``) rebuilds base and adapter, ``export_all`` writes targets of ``registry.TARGETS``, and
``foreign`` refuses hostile folders. A new target is one module or template here and one line in ``registry``. Names
load torch on first use.
"""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"export_all": "registry", "TARGETS": "registry", "SMALL": "registry", "FinishedRun": "run",
          "Target": "registry", "text_target": "registry", "check_exports": "check"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
