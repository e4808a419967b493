"""Study of the levers that are left: finer units, ladders, a weighted initialisation of adapters, and another schedule.

``python -m bench.levers`` measures profiles and trains what ``plan`` asks for; with ``--summary`` it writes the results
of the trials that are there.
"""
