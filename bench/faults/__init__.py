"""Provoked faults: whole runs that are disturbed must end with the results of an undisturbed run, or say why not.

``disturbances`` kills, signals and stops runs, ``kinds`` breaks disks, clocks and packages, and ``corruption`` damages
their files. ``python -m bench.faults`` runs them.
"""
