"""The trainer: loss, AdamW by unit, steps, gradients on calibration text, and checkpoints of trials."""
