"""Predicted memory against traced steps (``traces``), real runs on this CPU (``real``), a GPU's allocator (``gpu``),
and a simulation of that allocator (``allocator``, with ``replay`` and ``caching_allocator``)."""
