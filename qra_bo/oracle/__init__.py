"""Oracles: the protocol, and two that simulate fine-tuning.

``synthetic`` has a planted optimum, ``emulator`` is fitted on a table of real trials (``oracle=benchmark``). The oracle
that really fine-tunes is in ``qra_bo.finetune``.
"""

from qra_bo.oracle.protocol import TRAINING, Oracle, Progress, StopRequested, quiet

__all__ = ["TRAINING", "Oracle", "Progress", "StopRequested", "quiet"]
