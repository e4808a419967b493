"""Stage 1 of the published method alone: multi-fidelity NSGA-II (Eqs. 6 and 7), with its operators and archive."""
