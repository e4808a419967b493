"""Packed linear layers: the backends, the bank that swaps them in a model, and the choice of codes by GPTQ.

A new backend is a module here, and an entry of ``BACKENDS`` in ``memory/formats.py``.
"""
