"""Quality of a surrogate's held-out predictions: rank correlation, likelihood and interval coverage."""

import math
from dataclasses import dataclass

import torch
from scipy.stats import norm, rankdata
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Quality of ``n`` held-out predictions.

    Args:
        spearman: Rank correlation of mean and truth; ``nan`` where either is constant.
        spearman_good: The same over the better (smaller) half of the truths, where a search decides; large errors on
            bad designs raise ``spearman`` alone.
        nll: Mean negative log-likelihood of the truths (nats), in their own units.
        coverage_50: Share of truths within the central interval of probability 0.5; ``coverage_90``: of 0.9.
    """

    n: int
    spearman: float
    spearman_good: float
    nll: float
    coverage_50: float
    coverage_90: float


@dataclass(frozen=True)
class HeldOut:
    """Predictions of observations that the model did not see, each of ``n``.

    Args:
        mean: Predicted mean, in the units of ``truth``.
        sd: Predicted deviation of an observation (noise included), in these units.
        score: Error over deviation, in the scale in which the prediction is Gaussian.
        nll: Negative log-likelihood of every truth (nats), in the units of ``truth``.
    """

    truth: Tensor
    mean: Tensor
    sd: Tensor
    score: Tensor
    nll: Tensor

    def diagnostics(self) -> Diagnostics:
        """Return rank correlation, likelihood and coverage of the predictions."""
        good = self.truth <= self.truth.median()
        far = self.score.abs()
        inside = [float((far <= float(norm.ppf(0.5 + level / 2))).double().mean()) for level in (0.5, 0.9)]
        return Diagnostics(len(self.truth), spearman(self.mean, self.truth),
                           spearman(self.mean[good], self.truth[good]), float(self.nll.mean()), *inside)


def gaussian_nll(score: Tensor, sd: Tensor) -> Tensor:
    """Return the negative log-density of a Gaussian at ``score`` deviations from its mean, ``n``."""
    return 0.5 * score.square() + sd.log() + 0.5 * math.log(2 * math.pi)


def spearman(a: Tensor, b: Tensor) -> float:
    """Return the rank correlation of two vectors of ``n``, ties averaged; ``nan`` where either is constant."""
    ranks = [torch.from_numpy(rankdata(v.numpy())) for v in (a, b)]
    centred = [r - r.mean() for r in ranks]
    norms = [float(c.square().sum().sqrt()) for c in centred]
    return math.nan if min(norms) == 0.0 else float(centred[0] @ centred[1]) / (norms[0] * norms[1])
