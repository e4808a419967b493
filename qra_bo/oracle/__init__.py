"""Oracles: the protocol, and ``synthetic``, which simulates fine-tuning by a planted optimum.

The oracle that really fine-tunes is in ``qra_bo.finetune``.
"""
