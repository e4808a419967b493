"""Collection of tables of real fine-tuning trials: ``python -m bench.collect --help``."""
