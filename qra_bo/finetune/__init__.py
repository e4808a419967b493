"""The oracle that fine-tunes: base models, quantised layers, adapters, training, evaluation, profiles, memory.

Each part imports only those before it: data, models, training, quantization, adapters, then profiling, tracing and
evaluation, then ``oracle``. Importing this package silences a notice of bitsandbytes, which peft imports as well: that
of a fused inference kernel, which training never calls.
"""

import logging

from qra_bo.utils.lazy import lazy_names

logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward"))
_HOMES = {"FinetuneOracle": "oracle", "FinetuneSettings": "oracle", "Manifest": "manifest", "read_manifest": "manifest",
          "write_manifest": "manifest"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
