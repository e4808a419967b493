"""Benchmarks against targets and peers; each prints a table and writes ``bench/results/NAME.json``."""
