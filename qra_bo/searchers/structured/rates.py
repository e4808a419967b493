"""Exchange rates between bits and ranks: an additive model of the loss with few slopes, learned from earlier trials.

    loss = level + a sum_l I_q + b sum_l sqrt(I_q) - c sum_l share_l log2 r_l

``I_q`` is the quantisation sensitivity of unit ``l`` in its format as KL divergence from the 16-bit model (nats),
``share_l`` its share of the parameters. (The rise of the loss on a profile's few sequences has more noise, and an
optimum picks the units where noise makes few bits look harmless.) Slopes are at least 0 and the same for all units, so
that those of one text or model say something about another; the level is each study's own. (An interaction of
sensitivity and rank, and the measured rank sensitivity in place of ``log2 r``, did not predict the rows of an unseen
table better.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.structured.features import sensitivity_scales
from qra_bo.sensitivity import DIVERGENCE
from qra_bo.space import Allocation, FloatArray
from qra_bo.trials import Trial

NAMES = ("sensitivity", "root_sensitivity", "log2_rank")
"""The slopes: nats of loss a nat of I_q, a root nat of it, and a doubling of every rank (there a gain)."""
LEAST_LOSSES = 10
"""Losses below which a study says nothing of the slopes."""
NOISE = 0.005
"""Standard deviation of one loss (nats), as the surrogate's prior has it."""
MISFIT = 0.3
"""Standard deviation of the model's error as a share of the excess over a study's best loss: far ones count little."""
EFFECT = 0.1
"""Prior standard deviation of one term's effect (nats) over a study's rows."""
STILL = 1e-3
"""Least spread of a term over the rows that its slope's prior is scaled by. Of a term that differs in rounding alone
(ranks in a search with one rank) nothing is learned: its slope stays 0, with a wide and finite variance."""
UNKNOWN_SPREAD = 0.5
"""Spread of a slope between tasks as a share of it, where a single study can't show it."""


@dataclass(frozen=True)
class Rates:
    """Learned slopes with their uncertainty.

    Args:
        slopes: In the order of ``NAMES``, at least 0.
        covariance: Of the slopes for a new task, ``3 x 3``: of their estimate, and between the studies.
        error: Standard deviation of what the model leaves unexplained in a difference of two good allocations (nats),
            on studies that it was not fitted to where there are several.
        steps: Optimiser steps of the trials that it was learned from.
        studies: How many it was learned from.
    """

    slopes: FloatArray
    covariance: FloatArray
    error: float
    steps: int
    studies: int

    def table(self, problem: SearchProblem) -> FloatArray:
        """Return the expected loss of every choice of every unit, but for a constant, ``L x F x R`` (nats)."""
        return np.asarray(terms(problem) @ self.slopes)

    def difference(self, problem: SearchProblem, allocation: FloatArray, reference: FloatArray) -> tuple[float, float]:
        """Return mean and standard deviation of the loss of a row less that of another (nats).

        Args:
            problem: Of both.
            allocation: Its ladder positions, ``2 L``; those of ranks may be fractional.
            reference: Likewise.
        """
        apart = np.subtract(*rows_terms(problem, np.stack([allocation, reference])))
        variance = float(apart @ self.covariance @ apart) + (self.error**2 if apart.any() else 0.0)
        return float(apart @ self.slopes), math.sqrt(variance)


@dataclass(frozen=True)
class Study:
    """Losses of one task: terms (``n x 3``), losses (``n``, nats), repeats that each pools (``n``), and steps."""

    terms: FloatArray
    losses: FloatArray
    counts: FloatArray
    steps: int


def scales(problem: SearchProblem) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return I_q and its square root, ``L x F``, and the units' shares of the parameters, ``L``."""
    level, root = sensitivity_scales(problem, DIVERGENCE)
    return level, root, problem.space.unit_share


def terms(problem: SearchProblem) -> FloatArray:
    """Return the terms of the model by unit, format and rank, ``L x F x R x 3``: what ``slopes`` multiply."""
    level, root, share = scales(problem)
    ranks = np.log2(np.array(problem.space.ranks.values, dtype=np.float64))
    parts = (level[:, :, None], root[:, :, None], -share[:, None, None] * ranks)
    return np.stack([np.broadcast_to(part, problem.costs.shape) for part in parts], axis=-1)


def rows_terms(problem: SearchProblem, rows: FloatArray) -> FloatArray:
    """Return the terms of ``n x 2 L`` rows, ``n x 3``; rank positions may be fractional."""
    table, n_units = terms(problem), problem.space.n_units
    units, formats, position = np.arange(n_units), rows[:, :n_units].astype(np.int64), rows[:, n_units:]
    low = np.floor(position).astype(np.int64)
    below, above = (table[units, formats, r] for r in (low, np.minimum(low + 1, table.shape[2] - 1)))
    return np.asarray((below + (position - low)[..., None] * (above - below)).sum(axis=1))


def study_of(problem: SearchProblem, trials: Sequence[Trial]) -> Study | None:
    """Return what finished trials of one task tell of the slopes; ``None`` with fewer than ``LEAST_LOSSES``."""
    if (found := observed(problem, trials)) is None:
        return None
    rows, losses, counts = found
    return Study(rows_terms(problem, rows), losses, counts, problem.high_steps)


def observed(problem: SearchProblem, trials: Sequence[Trial]) -> tuple[FloatArray, FloatArray, FloatArray] | None:
    """Return what ``Observations.arrays`` does of finished trials; ``None`` with fewer than ``LEAST_LOSSES`` rows."""
    seen = Observations(problem)
    seen.tell(trials)
    arrays = seen.arrays()
    return None if len(arrays[0]) < LEAST_LOSSES else arrays


def learn(studies: Sequence[Study]) -> Rates:
    """Fit one set of slopes to all studies, each with its own level; ``studies`` are at least one."""
    slopes, covariance = _fit(studies)
    alone = np.array([_fit([study])[0] for study in studies])
    between = np.diag(alone.var(axis=0, ddof=1) if len(studies) > 1 else (UNKNOWN_SPREAD * slopes) ** 2)
    errors = [_error(study, _fit([s for s in studies if s is not study] or studies)[0]) for study in studies]
    steps = sorted(study.steps for study in studies)[len(studies) // 2]
    return Rates(slopes, covariance + between, float(np.sqrt(np.mean(np.square(errors)))), steps, len(studies))


def _fit(studies: Sequence[Study]) -> tuple[FloatArray, FloatArray]:
    """Return the slopes (at least 0) of least weighted squares under their prior, and their covariance."""
    from scipy.optimize import nnls  # stays unloaded where nothing is learned
    parts = [_weighted(study) for study in studies]
    x, y = np.vstack([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    weight = np.concatenate([_deviations(study) ** -2.0 for study in studies])
    spread = np.sqrt((x**2).sum(axis=0) / weight.sum())  # of the terms, in their own units
    precision = np.diag(np.maximum(spread, STILL) / EFFECT)
    slopes, _ = nnls(np.vstack([x, precision]), np.concatenate([y, np.zeros(len(NAMES))]))
    scale = max(1.0, float(((y - x @ slopes) ** 2).sum()) / max(len(y) - len(NAMES) - len(studies), 1))
    return slopes, scale * np.linalg.inv(x.T @ x + precision.T @ precision)


def _deviations(study: Study) -> FloatArray:
    """Return the standard deviation of every loss about the model, ``n``."""
    return np.asarray(np.sqrt(NOISE**2 / study.counts + (MISFIT * (study.losses - study.losses.min())) ** 2))


def _weighted(study: Study) -> tuple[FloatArray, FloatArray]:
    """Return terms and losses less their weighted means, over their deviations: ``n x 3`` and ``n``."""
    weight = 1.0 / _deviations(study)
    share = weight**2 / (weight**2).sum()
    return ((study.terms - share @ study.terms) * weight[:, None], (study.losses - share @ study.losses) * weight)


def _error(study: Study, slopes: FloatArray) -> float:
    """Return the root mean square error of the difference of two rows in a study's better half (nats)."""
    good = study.losses <= np.median(study.losses)
    left = (study.losses - study.terms @ slopes)[good]
    return float(np.sqrt(2.0) * left.std(ddof=1))


def row_of(problem: SearchProblem, allocation: Allocation) -> FloatArray | None:
    """Return the ladder positions of an allocation, see ``Observations.position``."""
    return Observations(problem).position(allocation)
