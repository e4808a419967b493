"""Closed-form models of the loss after more steps than were seen. Each is a function of ``Curves``, in which the last
loss of some rows is unknown, and of the last column ``seen`` that all rows hold; it returns the expected last loss of
every row, ``n``, but for a level that all rows share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize_scalar

from bench.length.curves import Curves
from bench.length.exponents import MISFIT, exponents
from qra_bo.searchers.structured.lengths import EXPONENTS
from qra_bo.searchers.structured.rates import EFFECT, NOISE
from qra_bo.space import FloatArray, IntArray

CHANGE, DEVIATION = 0.03, 0.015
"""Prior standard deviation (nats) of what one term's effect over the rows changes by when steps grow by the factor e:
at all lengths alike, and in one interval of steps beyond that."""
OF_RATE = 0.03
"""Prior standard deviation of what a doubling of the learning rate changes, and of its square (nats): small, for larger
ranks are trained at larger rates, and trials without other rates can't tell the two apart."""
OF_EARLY = 1.0
"""Prior standard deviation of the factor on the early loss about 1."""
POWERS = (0.01, 3.0)
"""Bounds of the power law's exponent."""


@dataclass(frozen=True)
class Fit:
    """Weighted ridge regression with a free level: coefficients (``k``) and their covariance (``k x k``)."""

    coefficients: FloatArray
    covariance: FloatArray

    @property
    def errors(self) -> FloatArray:
        """Standard errors of the coefficients, ``k``."""
        return np.asarray(np.sqrt(np.diag(self.covariance)))


def ridge(x: FloatArray, y: FloatArray, deviation: FloatArray, prior: FloatArray, group: IntArray) -> Fit:
    """Fit ``y = level of the group + x b`` with ``b ~ N(0, prior^2)``.

    Args:
        x: ``n x k``.
        y: ``n``.
        deviation: Standard deviation of each ``y``, ``n``; where residuals are larger, the covariance grows with them.
        prior: Standard deviation of each coefficient, ``k``.
        group: Number of the group, ``n``; a column that is constant in every group keeps its prior.
    """
    weight = 1.0 / deviation
    xs, ys = np.empty_like(x), np.empty_like(y)
    for g in np.unique(group):
        rows = group == g
        share = weight[rows] ** 2 / (weight[rows] ** 2).sum()
        xs[rows] = (x[rows] - share @ x[rows]) * weight[rows, None]
        ys[rows] = (y[rows] - share @ y[rows]) * weight[rows]
    inverse = np.linalg.inv(xs.T @ xs + np.diag(1.0 / prior**2))
    coefficients = inverse @ (xs.T @ ys)
    freedom = max(len(y) - int(xs.any(axis=0).sum()) - len(np.unique(group)), 1)
    scale = max(1.0, float(((ys - xs @ coefficients) ** 2).sum()) / freedom)
    return Fit(coefficients, np.asarray(scale * inverse))


def features(curves: Curves) -> FloatArray:
    """Return the terms of the exchange rates, the logarithm of the learning rate's factor (base 2) and its square,
    ``n x 5``."""
    log_rate = np.log2(curves.rates)[:, None]
    return np.hstack([curves.terms, log_rate, log_rate**2])


def last_value(curves: Curves, seen: int) -> FloatArray:
    """Differences stay what they are."""
    return curves.losses[:, seen]


def power_law(curves: Curves, seen: int) -> FloatArray:
    """Each curve is ``a + b steps^-p`` with the exponent of all; a single loss tells no ``b``, which is then that of
    all, and differences stay what they are."""
    if seen == 0:
        return last_value(curves, seen)
    early, known = curves.losses[:, :seen + 1], np.isfinite(curves.losses[:, -1])
    steps = np.array(curves.steps, dtype=np.float64) / curves.steps[-1]

    def predict(exponent: float) -> FloatArray:
        design = np.column_stack([np.ones(seen + 1), steps[:seen + 1] ** -exponent])
        return np.asarray(early @ (np.ones(2) @ np.linalg.pinv(design)))

    weight = _deviation(curves, seen)[known] ** -2.0

    def error(exponent: float) -> float:
        left = curves.losses[known, -1] - predict(exponent)[known]
        return float(weight @ (left - weight @ left / weight.sum()) ** 2)

    return predict(float(minimize_scalar(error, bounds=POWERS, method="bounded").x))


def carried_rates(curves: Curves, seen: int) -> FloatArray:
    """The last loss seen, and what a search adds to it (``lengths``): how power laws of the steps change the exchange
    rates of another text. Exponents are learned from the known curves where these go beyond the trainings behind the
    rates; else they are those of a search, which come from longer trainings."""
    rates, exponent = curves.elsewhere, EXPONENTS
    if curves.steps[-1] > rates.steps:
        known = curves.rows(np.isfinite(curves.losses[:, -1]))
        known = known.rows(known.best_rates())
        ends = replace(known, steps=(curves.steps[seen], curves.steps[-1]), losses=known.losses[:, [seen, -1]])
        found = exponents([ends], rates)
        exponent = np.array([found.damage, found.damage, found.rank])
    before, after = (rates.slopes * (curves.steps[column] / rates.steps) ** exponent for column in (seen, -1))
    return np.asarray(curves.losses[:, seen] + curves.terms @ (after - before))


def known_alone(curves: Curves, seen: int) -> FloatArray:
    """Exchange rates of the rows that are known at the end, whatever the early losses."""
    fitted = rates_after([curves], len(curves.steps) - 1)
    return np.asarray(features(curves) @ fitted.coefficients)


def changed_rates(curves: Curves, seen: int, shrink: bool = False) -> FloatArray:
    """The last loss seen, and the change of the exchange rates in the logarithm of the steps.

    ``y_T(a) = y_t(a) + (beta_T - beta_t) . terms(a) + c``. The change is learned from rows that are known at the end,
    and from all rows between the columns seen. With ``shrink`` the early loss has a factor of its own, for part of it
    is noise.
    """
    x, last = features(curves), len(curves.steps) - 1
    intervals = [*pairwise(range(seen + 1)), (seen, last)]
    designs = [_design(curves, x, intervals, i, shrink) for i in range(len(intervals))]
    changes = np.concatenate([curves.losses[:, b] - curves.losses[:, a] for a, b in intervals])
    group = np.repeat(np.arange(len(intervals)), len(x))
    deviation = np.tile(np.sqrt(2.0) * _deviation(curves, seen), len(intervals))
    spread, known = _spread(x), np.isfinite(changes)
    prior = np.concatenate([CHANGE / spread, *[DEVIATION / spread] * len(intervals), [OF_EARLY] * shrink])
    fitted = ridge(np.vstack(designs)[known], changes[known], deviation[known], prior, group[known])
    return np.asarray(curves.losses[:, seen] + designs[-1] @ fitted.coefficients)


def shrunk_changed_rates(curves: Curves, seen: int) -> FloatArray:
    """``changed_rates`` with a factor on the early loss."""
    return changed_rates(curves, seen, shrink=True)


def rates_after(groups: Sequence[Curves], column: int) -> Fit:
    """Fit the exchange rates after the steps of a column to all groups, each with a level of its own.

    The first three coefficients are nats a nat of I_q, a root nat of it, and a doubling of every rank (there a gain).
    """
    rows = [np.isfinite(curves.losses[:, column]) for curves in groups]
    whole = [curves.rows(chosen) for curves, chosen in zip(groups, rows, strict=True)]
    x = np.vstack([features(curves) for curves in whole])
    return ridge(x, np.concatenate([c.losses[:, column] for c in whole]),
                 np.concatenate([_deviation(c, column) for c in whole]),
                 np.concatenate([EFFECT / _spread(x[:, :3]), [OF_RATE, OF_RATE]]),
                 np.repeat(np.arange(len(whole)), [len(c.losses) for c in whole]))


def _design(curves: Curves, x: FloatArray, intervals: list[tuple[int, int]], i: int, shrink: bool) -> FloatArray:
    """Return the rows of interval ``i``, ``n x k``: features times the logarithm of the steps' ratio, once for all
    intervals and once for this one, and the early loss in the last."""
    a, b = intervals[i]
    scaled = x * np.log(curves.steps[b] / curves.steps[a])
    own = [scaled if j == i else np.zeros_like(x) for j in range(len(intervals))]
    early = curves.losses[:, [a]] * (i == len(intervals) - 1)
    return np.hstack([scaled, *own, *[early] * shrink])


def _deviation(curves: Curves, column: int) -> FloatArray:
    """Return the standard deviation of every loss about a model, ``n``: far ones count little."""
    excess = curves.losses[:, column] - np.nanmin(curves.losses[:, column])
    return np.asarray(np.sqrt(NOISE**2 + (MISFIT * excess) ** 2))


def _spread(x: FloatArray) -> FloatArray:
    """Return the standard deviation of every feature, ``k``; 1 where it is constant."""
    spread = x.std(axis=0)
    return np.where(spread > 1e-12, spread, 1.0)
