"""Quality of a surrogate's held-out predictions: rank correlation, likelihood and interval coverage."""

from typing import Any

from scipy.stats import norm, spearmanr
from torch import Tensor


def diagnostics(truth: Tensor, mean: Tensor, sd: Tensor, score: Tensor, nll: Tensor) -> dict[str, Any]:
    """Return how good predictions are of observations that the model did not see, each of ``n``.

    Args:
        truth: The observations.
        mean: Predicted mean, in the units of ``truth``.
        sd: Predicted deviation of an observation (noise included), in these units.
        score: Error over deviation, in the scale in which the prediction is Gaussian.
        nll: Negative log-likelihood of every truth (nats), in the units of ``truth``.

    Returns:
        Lists ``observed``, ``predicted`` and ``sd``; ``n``; the rank correlation of means and truths, ``spearman``, and
        over the better (smaller) half of the truths, ``spearman_good`` (large errors on bad designs raise the first
        alone); their mean ``nll``; and the shares of truths within the central intervals of probability 0.5 and 0.9,
        ``coverage_50`` and ``coverage_90``.
    """
    good, far = truth <= truth.median(), score.abs()
    inside = {f"coverage_{level}": float((far <= float(norm.ppf(0.5 + level / 200))).double().mean())
              for level in (50, 90)}
    return {"observed": truth.tolist(), "predicted": mean.tolist(), "sd": sd.tolist(), "n": len(truth),
            "spearman": spearman(mean, truth), "spearman_good": spearman(mean[good], truth[good]),
            "nll": float(nll.mean()), **inside}


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Return the rank correlation of two vectors of ``n``, ties averaged; ``None`` where either is constant."""
    constant = any(v.min() == v.max() for v in (a, b))
    return None if constant else float(spearmanr(a.numpy(), b.numpy()).statistic)
