"""Study of chosen allocations: a plan crosses allocations with learning rates, training seeds, lengths and texts.

``plan`` reads the YAML file, ``schedule`` says which trials its rules still want, ``run`` trains them into a trial
store (``bench.store``), and ``summary`` makes the results with paired differences. ``python -m bench.study PLAN.yaml``.
"""
