"""Exponents of the exchange rates in the length of training, from whole curves: what ``effort=instant`` stands on.

    loss = level + sum_i s_i (T / s)^e_i x_i

``s_i`` are the shipped slopes, learned from tables of trainings of ``s`` steps, ``x_i`` the terms of an allocation.
Both terms of sensitivity share an exponent. Exponents have a wide prior about 0, at which lengths make no difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from bench.length.curves import Curves
from qra_bo.searchers.structured.rates import MISFIT, NOISE, Rates
from qra_bo.space import FloatArray

PRIOR = 0.3
"""Prior standard deviation of an exponent."""


@dataclass(frozen=True)
class Exponents:
    """Exponents of damage and of rank with their standard errors, and how many allocations they were learned from."""

    damage: float
    rank: float
    damage_se: float
    rank_se: float
    allocations: int


def exponents(groups: Sequence[Curves], rates: Rates) -> Exponents:
    """Fit the last losses of the groups, each with a level of its own, every allocation at its best learning rate."""
    best = [curves.rows(curves.best_rates()) for curves in groups]
    ratio = best[0].steps[-1] / rates.steps
    deviation = [np.sqrt(NOISE**2 + (MISFIT * (c.losses[:, -1] - c.losses[:, -1].min())) ** 2) for c in best]

    def residuals(e: FloatArray) -> FloatArray:
        slopes = rates.slopes * ratio ** np.array([e[0], e[0], e[1]])
        left = [_centred(c.losses[:, -1] - c.terms @ slopes, d) for c, d in zip(best, deviation, strict=True)]
        return np.concatenate([*left, e / PRIOR])

    fit = least_squares(residuals, np.zeros(2))
    errors = np.sqrt(np.diag(np.linalg.inv(fit.jac.T @ fit.jac)))
    count = len({int(a) for c in best for a in c.allocation})
    return Exponents(float(fit.x[0]), float(fit.x[1]), float(errors[0]), float(errors[1]), count)


def _centred(left: FloatArray, deviation: FloatArray) -> FloatArray:
    """Return residuals less their weighted mean, over their deviations, ``n``."""
    share = deviation**-2.0 / (deviation**-2.0).sum()
    return np.asarray((left - share @ left) / deviation)
