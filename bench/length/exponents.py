"""Exponents of the exchange rates in the length of training: what longer trainings are predicted with.

    loss after T steps = level_T + sum_i f_i s_i (T / s)^e_i x_i

``s_i`` are the shipped slopes, learned from tables of trainings of ``s`` steps, and ``x_i`` the terms of an allocation.
Factors ``f_i`` take up that the study has other formats. Both terms of sensitivity share a factor and an exponent. They
have wide priors, about 1 and about 0, where lengths make no difference.
"""

from collections.abc import Sequence
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


def exponents(groups: Sequence[Curves], rates: Rates) -> Exponents:
    """Fit the losses of every column of whole runs, one row an allocation; each column of each group has a level of
    its own."""
    deviations = [np.sqrt(NOISE**2 + (MISFIT * (c.losses - c.losses.min(axis=0))) ** 2) for c in groups]

    def residuals(e: FloatArray) -> FloatArray:
        parts = [e / np.array([PRIOR, PRIOR, FACTOR, FACTOR])]
        both = [np.array([v[0], v[0], v[1]]) for v in (e[:2], e[2:])]
        for curves, deviation in zip(groups, deviations, strict=True):
            ratios = np.array(curves.steps) / rates.steps
            slopes = rates.slopes * np.exp(both[1]) * ratios[:, None] ** both[0]
            left = curves.losses - curves.terms @ slopes.T
            share = deviation**-2.0 / (deviation**-2.0).sum(axis=0)
            parts.append(((left - (share * left).sum(axis=0)) / deviation).ravel())
        return np.concatenate(parts)

    fit = least_squares(residuals, np.zeros(4))
    freedom = max(sum(c.losses.size - len(c.steps) for c in groups) - 4, 1)
    scale = max(1.0, float((residuals(fit.x)[4:] ** 2).sum()) / freedom)
    errors = np.sqrt(scale * np.diag(np.linalg.inv(fit.jac.T @ fit.jac)))
    return Exponents(*map(float, (fit.x[0], fit.x[1], errors[0], errors[1])), sum(len(c.losses) for c in groups))
