"""A monotone change of scale in which effects of units add up: logarithmic, with an offset below the best value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LogWarp:
    """``z = (offset log(1 + (y - best) / offset) - shift) / unit``; the identity (standardised) at infinity.

    >>> warp = LogWarp(best=1.0, offset=0.5, shift=0.0, unit=1.0)
    >>> warp.inverse(warp.forward(torch.tensor([1.0, 3.0]))).tolist()
    [1.0, 3.0]

    Args:
        best: The smallest observed value; there the slope is ``1 / unit``.
        offset: How far below it the logarithm's pole lies; the smaller, the more super-additive.
        shift: Latent location.
        unit: Latent scale, in units of ``y`` near the best value.
    """

    best: float
    offset: float
    shift: float
    unit: float

    def forward(self, y: Tensor) -> Tensor:
        """Return latent values."""
        above = y - self.best
        raw = above if math.isinf(self.offset) else self.offset * torch.log1p(above / self.offset)
        return (raw - self.shift) / self.unit

    def inverse(self, z: Tensor) -> Tensor:
        """Return the values of latent ones."""
        raw = z * self.unit + self.shift
        return self.best + (raw if math.isinf(self.offset) else self.offset * torch.expm1(raw / self.offset))

    def moments(self, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation in units of ``y`` of latent Gaussians (log-normal moments)."""
        if math.isinf(self.offset):
            return self.inverse(mean), sd * self.unit
        variance = (sd * self.unit / self.offset).square()
        level = self.offset * torch.exp((mean * self.unit + self.shift) / self.offset + variance / 2)
        return self.best - self.offset + level, level * torch.expm1(variance).sqrt()

    def log_jacobian(self, y: Tensor) -> Tensor:
        """Return ``log dz/dy`` at every value."""
        slope = torch.zeros_like(y) if math.isinf(self.offset) else -torch.log1p((y - self.best) / self.offset)
        return slope - math.log(self.unit)


def candidate_warps(y: Tensor, offsets: Sequence[float | None]) -> list[LogWarp]:
    """Return one standardising warp for every offset, given in multiples of the gap between best and median value;
    ``None`` is no warp, and the only one for values that are all equal: they have no gap to bend at."""
    best = float(y.min())
    if best == float(y.max()):
        offsets = (None,)
    gap = max(float(y.median()) - best, 1e-3 * float(y.max() - y.min()), 1e-6)
    result = []
    for multiple in offsets:
        offset = math.inf if multiple is None else multiple * gap
        raw = LogWarp(best, offset, 0.0, 1.0).forward(y)
        result.append(LogWarp(best, offset, float(raw.mean()), max(float(raw.std()), 1e-9)))
    return result
