"""A logarithmic scale for losses, which explode at 2 bits and differ by hundredths where it matters."""

from dataclasses import dataclass

import numpy as np

from qra_bo.sensitivity.profile import FloatArray

SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Warp:
    """``z = log(1 + (y - best) / offset)``, standardised to mean ``centre`` and deviation ``scale``; linear below best.

    Args:
        best: Least loss.
        offset: Distance above it at which the scale bends (nats).
        centre: Mean of the logarithms.
        scale: Their standard deviation.
    """

    best: float
    offset: float
    centre: float
    scale: float

    @classmethod
    def to(cls, losses: FloatArray) -> "Warp":
        """Return the warp of ``n`` losses: it bends at a share of the gap between the best and the median one."""
        best = float(losses.min())
        offset = max(SHARE * (float(np.median(losses)) - best), 1e-6)
        logs = np.log1p((losses - best) / offset)
        return cls(best, offset, float(logs.mean()), max(float(logs.std()), 1e-9))

    def forward(self, losses: FloatArray) -> FloatArray:
        """Return ``z`` of ``n`` losses."""
        excess = (losses - self.best) / self.offset
        logs = np.where(excess > 0, np.log1p(np.maximum(excess, 0.0)), excess)
        warped: FloatArray = (logs - self.centre) / self.scale
        return warped

    def inverse(self, warped: FloatArray) -> FloatArray:
        """Return the losses of ``n`` values of ``z``."""
        logs = warped * self.scale + self.centre
        losses: FloatArray = self.best + self.offset * np.where(logs > 0, np.expm1(np.maximum(logs, 0.0)), logs)
        return losses
