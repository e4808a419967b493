"""Where trials run: in this process, in worker processes of this machine, or on Ray.

An executor is handed trials, survives workers that die, hang or run out of memory, and returns results.
"""
