"""Evaluation beyond the held-out loss: task accuracy by lm-evaluation-harness, and the probe of a saved model.
"""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"TaskScore": "harness", "check_tasks": "harness", "score_tasks": "harness", "probe_difference": "probe",
          "save_probe": "probe"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
