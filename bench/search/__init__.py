"""Comparison of searches on emulated tables of real trials: ``python -m bench.search --help``."""
