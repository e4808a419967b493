"""The published comparison at equal conditions: every method a real implementation, through the same data, trainer,
steps, seeds, learning-rate calibration and memory accounting (``python -m bench.table1``)."""
