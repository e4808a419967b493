"""The oracle that fine-tunes: base models, quantised layers, adapters, training, evaluation, profiles, memory.

Its parts, each importing those before it only: data, models, training, quantization, adapters, then profiling, tracing
and evaluation, and ``oracle`` on top. Importing it silences a notice of bitsandbytes, which peft imports as well.
"""

from qra_bo.finetune.models.quiet import hush_bitsandbytes
from qra_bo.utils.lazy import lazy_names

hush_bitsandbytes()
_HOMES = {"FinetuneOracle": "oracle", "FinetuneSettings": "oracle", "Manifest": "manifest", "read_manifest": "manifest",
          "write_manifest": "manifest"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
