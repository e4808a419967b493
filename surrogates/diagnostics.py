"""How good a surrogate's held-out predictions are: rank correlation, likelihood and interval coverage."""

import math
from dataclasses import dataclass

import torch
from scipy.stats import norm, rankdata
from torch import Tensor

from surrogates.checks import check_shape
from surrogates.errors import SurrogateError


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Quality of ``n`` held-out Gaussian predictions.

    Args:
        n: Predictions judged.
        spearman: Rank correlation of mean and truth; ``nan`` where either is constant.
        nll: Mean negative log-likelihood (nats).
        coverage: Share of truths within the central interval of ``level``.
        level: Nominal probability of that interval.
    """

    n: int
    spearman: float
    nll: float
    coverage: float
    level: float


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors of ``n``, ties averaged; ``nan`` where either is constant."""
    check_shape("b", b, (a.shape[0],))
    ranks = [torch.from_numpy(rankdata(v.numpy())) for v in (a, b)]
    centred = [r - r.mean() for r in ranks]
    norms = [float(c.square().sum().sqrt()) for c in centred]
    if min(norms) == 0.0:
        return math.nan
    return float(centred[0] @ centred[1]) / (norms[0] * norms[1])


def diagnose(truth: Tensor, mean: Tensor, sd: Tensor, level: float = 0.9) -> Diagnostics:
    """Judge predictions ``mean`` and ``sd`` of ``truth``, each ``n``.

    Raises:
        SurrogateError: If shapes differ, there are fewer than 2 predictions, or a deviation is not positive.
    """
    n = truth.shape[0]
    check_shape("mean", mean, (n,))
    check_shape("sd", sd, (n,))
    if n < 2 or not bool((sd > 0).all()):
        raise SurrogateError(f"diagnostics need at least 2 predictions with positive deviations; got {n}, the "
                             f"smallest deviation {float(sd.min()) if n else math.nan:g}")
    score = (truth - mean) / sd
    nll = float((0.5 * score.square() + sd.log() + 0.5 * math.log(2 * math.pi)).mean())
    width = float(norm.ppf(0.5 + level / 2))
    return Diagnostics(n, spearman(mean, truth), nll, float((score.abs() <= width).double().mean()), level)
