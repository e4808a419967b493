"""The command line ``python -m qra_bo`` (``qra-bo``): one run, or a sweep of several jobs.

``app`` parses the arguments and gives exit statuses, ``sweep`` records the jobs of a sweep.
"""
