"""Provoked faults: whole runs that are disturbed must end with the results of an undisturbed run, or say why not.

``disturbances`` kills, signals and stops runs, ``kinds`` breaks disks, clocks and packages, ``corruption`` damages
their files, and ``syscalls`` lets single system calls fail. ``python -m bench.faults`` runs them.
"""
