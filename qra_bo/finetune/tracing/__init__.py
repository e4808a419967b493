"""Memory of training: measured on real steps, and traced on meta tensors."""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"MemoryProbe": "memory_probe", "StepTracer": "trace", "Traced": "trace"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
