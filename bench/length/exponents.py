"""Exponents of the exchange rates in the length of training: what longer trainings are predicted with.

    loss after T steps = level_T + sum_i f_i s_i (T / s)^e_i x_i

``s_i`` are the shipped slopes, learned from tables of trainings of ``s`` steps, and ``x_i`` the terms of an allocation.
Factors ``f_i`` take up that the study has other formats. Both terms of sensitivity share a factor and an exponent. They
have wide priors, about 1 and about 0, where lengths make no difference.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from bench.length.curves import Curves
from qra_bo.searchers.structured.rates import NOISE, Rates
from qra_bo.space import FloatArray

PRIOR, FACTOR = 0.3, 0.7
"""Prior standard deviations of an exponent, and of the logarithm of a factor."""
MISFIT = 0.1
"""Standard deviation of the model's error as a share of the excess over the best loss, which is small in this study."""


@dataclass(frozen=True)
class Exponents:
    """Exponents of damage and of rank with their standard errors, and how many allocations they were learned from."""

    damage: float
    rank: float
    damage_se: float
    rank_se: float
    allocations: int


def exponents(curves: Curves, rates: Rates) -> Exponents:
    """Fit the losses of every column of whole runs, each column with a level of its own, to one row an allocation."""
    ratios = np.array(curves.steps) / rates.steps
    deviation = np.sqrt(NOISE**2 + (MISFIT * (curves.losses - curves.losses.min(axis=0))) ** 2)
    share = deviation**-2.0 / (deviation**-2.0).sum(axis=0)

    def residuals(e: FloatArray) -> FloatArray:
        both = [np.array([v[0], v[0], v[1]]) for v in (e[:2], e[2:])]
        slopes = rates.slopes * np.exp(both[1]) * ratios[:, None] ** both[0]
        left = curves.losses - curves.terms @ slopes.T
        prior = e / np.array([PRIOR, PRIOR, FACTOR, FACTOR])
        return np.concatenate([((left - (share * left).sum(axis=0)) / deviation).ravel(), prior])

    fit = least_squares(residuals, np.zeros(4))
    freedom = max(curves.losses.size - len(curves.steps) - 4, 1)
    scale = max(1.0, float((residuals(fit.x)[:-4] ** 2).sum()) / freedom)
    errors = np.sqrt(scale * np.diag(np.linalg.inv(fit.jac.T @ fit.jac)))
    return Exponents(*map(float, (fit.x[0], fit.x[1], errors[0], errors[1])), len(curves.losses))
