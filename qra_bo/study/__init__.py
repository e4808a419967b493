"""One run: the engine, its journal, baselines, search loop, confirmation, verdict, final fine-tune and results.

The engine is the only caller of oracles; every other package reads a run through its journal. Six floors: header and
journal; records of events; the study folded from them; trials and the verdict; the parts of a run; the engine.
"""
