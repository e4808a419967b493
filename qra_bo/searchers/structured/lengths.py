"""How exchange rates change with the length of training, and what that changes in a loss.

Damage by few bits heals while adapters are trained, and what a rank is worth grows. A slope learned from trainings
of ``s`` steps is taken to be ``(T / s)^e`` times as large at ``T`` steps. The exponents are those of
``bench/results/length_model.json`` (commit 80dfe91): one model, one text, 24 to 240 steps. They are of the ratio of two
lengths, so that trials of any batch can be carried to the length of a final fine-tune.
"""

import math
from dataclasses import replace

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured.rates import Rates, scales
from qra_bo.sensitivity.change import Change

EXPONENTS = np.array([-0.16, -0.16, 0.22])
"""Of the slopes, in the order of ``rates.NAMES``."""
DEVIATIONS = np.array([0.01, 0.01, 0.08])
"""Standard deviations of the exponents."""
LONGEST = 10.0
"""Longest ratio that was measured; beyond it the rates stay as they are there."""


def at_length(rates: Rates, steps: int) -> Rates:
    """Return the rates of trainings of ``steps`` steps; their covariance holds that of the exponents."""
    log_ratio = math.log(min(steps / rates.steps, LONGEST))
    factors = np.exp(EXPONENTS * log_ratio)
    slopes = rates.slopes * factors
    covariance = rates.covariance * np.outer(factors, factors) + np.diag((slopes * DEVIATIONS * log_ratio) ** 2)
    return replace(rates, slopes=slopes, covariance=covariance, steps=steps)


def change(rates: Rates, problem: SearchProblem, before: int, after: int) -> Change:
    """Return what trainings of ``after`` steps change in the losses of those of ``before`` steps, by the rates."""
    level, root, share = scales(problem)
    a, b, c = at_length(rates, after).slopes - at_length(rates, before).slopes
    return Change(tuple(f.name for f in problem.space.formats), np.asarray(a * level + b * root),
                  np.asarray(-c * share, dtype=np.float64))
