"""Searches compared on emulated tables of real evaluations: ``python -m bench.search --help``."""
