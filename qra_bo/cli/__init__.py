"""The command line: overrides, composition, the Hydra application, sweeps."""
