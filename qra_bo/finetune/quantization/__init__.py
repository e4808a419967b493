"""Packed linear layers: the backends, the bank that swaps them in a model, and the choice of codes by GPTQ.

A new backend is a module here, named with its formats in ``memory/formats.py``.
"""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"LayerBank": "bank", "OwnBase": "bank", "PackedLinear": "base", "QuantizerBackend": "base",
          "backend_of": "base", "Rounding": "rounding"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
