"""From a checked configuration to a finished run: one module a concern, each imported where it is used.

``pricing`` says what fits, ``prepare`` checks a run beforehand, ``executors`` make what trains, ``run`` is the run.
"""
