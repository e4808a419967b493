"""Whether to repeat what is known rather than try something new: the knowledge gradient of both, per evaluation."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from qra_bo.sensitivity.profile import FloatArray

LEVEL_VARIANCE = 1e4
"""Prior variance of a training seed's level, in latent units: only differences on one seed say anything."""


@dataclass(frozen=True, slots=True)
class Round:
    """A repeat of the best known allocations, all on one further training seed.

    Args:
        size: How many of the best, at least 2.
        value: Expected improvement of the best posterior mean for each evaluation spent (latent units).
    """

    size: int
    value: float


def new_value(mean: FloatArray, sd: FloatArray, noise: float, best: float) -> FloatArray:
    """Expected improvement of the best posterior mean by one noisy evaluation of each of ``n`` new designs (Frazier's
    knowledge gradient, the change of other means left out).

    With ``t = sd^2 / sqrt(sd^2 + noise^2)`` and ``u = (best - mean) / t`` it is ``t (phi(u) + u Phi(u))``.

    Args:
        mean: Posterior means, ``n``.
        sd: Posterior standard deviations of the noise-free values, ``n``.
        noise: Standard deviation of an evaluation.
        best: Least posterior mean of what is known.
    """
    change = sd**2 / np.sqrt(sd**2 + noise**2)
    u = (best - mean) / change
    value: FloatArray = change * (np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi) + u * ndtr(u))
    return value


def best_round(mean: FloatArray, covariance: FloatArray, noise: float, normals: FloatArray) -> Round | None:
    """The most valuable round over the best ``2 .. n`` of ``n`` known designs; ``None`` with fewer than two.

    Args:
        mean: Posterior means, increasing, ``n``.
        covariance: Of the noise-free values, ``n x n``.
        noise: Standard deviation of an evaluation.
        normals: Standard normal draws for the expectation, ``s x n``.
    """
    rounds = []
    for size in range(2, len(mean) + 1):
        prior = covariance[:size, :size]
        observed = prior + noise**2 * np.eye(size) + LEVEL_VARIANCE
        change = covariance[:, :size] @ np.linalg.solve(observed, covariance[:, :size].T)
        values, vectors = np.linalg.eigh((change + change.T) / 2)
        shifts = (normals * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
        gain = float(mean[0] - (mean + shifts).min(axis=1).mean() + shifts[:, 0].mean())
        rounds.append(Round(size, max(gain, 0.0) / size))
    return max(rounds, key=lambda r: r.value, default=None)
