"""Oracles: the protocol, and ``synthetic``, which simulates fine-tuning by a planted optimum.

The oracle that really fine-tunes is in ``qra_bo.finetune``.
"""

from qra_bo.oracle.protocol import TRAINING, Oracle, Progress, StopRequested, activity, quiet

__all__ = ["TRAINING", "Oracle", "Progress", "StopRequested", "activity", "quiet"]
