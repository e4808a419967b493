"""The trainer: loss, AdamW by unit, steps, gradients on calibration text, and checkpoints of trials."""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"TrainSettings": "loop", "train_step": "loop", "held_out": "loop", "DivergedError": "loop",
          "AdamWSettings": "optimizer", "UnitwiseAdamW": "optimizer", "CheckpointStore": "trial_run",
          "TrialRun": "trial_run", "CalibrationText": "loss"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
