"""A table of real evaluations, and the oracle that is fitted on it."""
