"""Collecting a table of real fine-tuning evaluations: ``python -m bench.collect --help``."""
