"""The oracle that fine-tunes: base models, quantised layers, adapters, training, evaluation, profiles, memory.

Each part imports only those before it: data, models, training, quantization, adapters, then profiling, memory probe
and evaluation, then ``oracle``.
"""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"FinetuneOracle": "oracle", "FinetuneSettings": "oracle", "Manifest": "manifest", "read_manifest": "manifest",
          "write_manifest": "manifest"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
