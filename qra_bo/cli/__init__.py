"""The command line ``python -m qra_bo`` (``qra-bo``), in ``app``: one run, or a sweep with a record of its jobs."""
