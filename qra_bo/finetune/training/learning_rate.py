"""How an adapter's learning rate depends on its rank and on the length of training.

A rate is calibrated on trials, and the final fine-tune is many times longer. What is best falls with
the length, and more for small ranks (``bench/results/length_rates.json``, commit b6a5a1f: one model, one text, 24 to
240 steps).
"""

import math
from dataclasses import dataclass

REFERENCE_RANK = 16
LONGEST = 10.0
"""Longest ratio of two lengths that was measured; beyond it the rates stay as they are there."""


@dataclass(frozen=True, slots=True)
class RateRule:
    """Peak learning rate of a rank, as a factor on that of ``REFERENCE_RANK`` in a trial.

    Args:
        exponent: ``p`` of ``(16 / r)^p`` in trainings as long as a trial.
        per_tenfold: What is added to ``p`` in trainings ten times as long; it stays at least 0.
        fall: Exponent of the length at rank 16.
    """

    exponent: float
    per_tenfold: float = 0.0
    fall: float = 0.0

    def factor(self, rank: float, ratio: float = 1.0) -> float:
        """Return the factor of ``rank`` in trainings that are ``ratio`` times as long as a trial.

        >>> RateRule(0.5).factor(4)
        2.0
        """
        tens = math.log10(min(max(ratio, 1.0), LONGEST))
        exponent = max(0.0, self.exponent + self.per_tenfold * tens)
        return float((REFERENCE_RANK / rank) ** exponent * 10.0 ** (self.fall * tens))


RATE_RULES = {"constant": RateRule(0.0), "inverse_sqrt": RateRule(0.5), "inverse": RateRule(1.0),
              "by_length": RateRule(0.5, -0.075, -0.15)}
"""Rules of ``adapter.lr_rule``."""
