"""Measurement of the sensitivity profile: quantisation sensitivity and rank sensitivity of every unit.
"""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"measure_quantization_sensitivity": "measure", "measure_rank_sensitivity": "measure",
          "DenseReference": "measure"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
