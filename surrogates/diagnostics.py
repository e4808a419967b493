"""Quality of a surrogate's held-out predictions: rank correlation, likelihood and interval coverage."""

import math
from dataclasses import dataclass

from scipy.stats import norm, spearmanr
from torch import Tensor


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

    def diagnostics(self) -> dict[str, float]:
        """Return ``n``, the rank correlation of means and truths, ``spearman``, and over the better (smaller) half of
        the truths, ``spearman_good`` (large errors on bad designs raise the first alone); their mean ``nll``; and the
        shares of truths within the central intervals of probability 0.5 and 0.9, ``coverage_50`` and ``coverage_90``.
        """
        good, far = self.truth <= self.truth.median(), self.score.abs()
        inside = {f"coverage_{level}": float((far <= float(norm.ppf(0.5 + level / 200))).double().mean())
                  for level in (50, 90)}
        return {"n": len(self.truth), "spearman": spearman(self.mean, self.truth),
                "spearman_good": spearman(self.mean[good], self.truth[good]), "nll": float(self.nll.mean()), **inside}


def gaussian_nll(score: Tensor, sd: Tensor) -> Tensor:
    """Return the negative log-density of a Gaussian at ``score`` deviations from its mean, ``n``."""
    return 0.5 * score.square() + sd.log() + 0.5 * math.log(2 * math.pi)


def spearman(a: Tensor, b: Tensor) -> float:
    """Return the rank correlation of two vectors of ``n``, ties averaged; ``nan`` where either is constant."""
    constant = any(v.min() == v.max() for v in (a, b))
    return math.nan if constant else float(spearmanr(a.numpy(), b.numpy()).statistic)
