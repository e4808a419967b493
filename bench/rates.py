"""Exchange rates learned from the losses of finished studies, by weighted least squares under a prior."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.rates.model import NAMES, SCHEMA_VERSION, Rates, rows_terms
from qra_bo.space import FloatArray
from qra_bo.trials import Trial
from qra_bo.utils.files import write_json

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
class Study:
    """Losses of one task.

    Args:
        terms: ``n x 3`` (``rows_terms``).
        losses: ``n`` (nats).
        counts: Repeats that each loss pools, ``n``.
        tokens: Training tokens of every trial.
        lr_scale: Calibrated factor on the learning rate that its trainer has for the model.
    """

    terms: FloatArray
    losses: FloatArray
    counts: FloatArray
    tokens: int
    lr_scale: float = 1.0


def study_of(problem: SearchProblem, trials: Sequence[Trial], lr_scale: float = 1.0) -> Study | None:
    """Return what finished trials of one task at its learning rate tell; ``None`` with fewer than ``LEAST_LOSSES``."""
    seen = Observations(problem)
    seen.tell(trials)
    rows, losses, counts = seen.arrays()
    return None if len(rows) < LEAST_LOSSES else Study(rows_terms(problem, rows), losses, counts, problem.trial_tokens,
                                                       lr_scale)


def learn(named: Mapping[str, Study]) -> Rates:
    """Fit one set of slopes to all studies, at least one, each with its own level; ``named`` holds them by source."""
    studies = list(named.values())
    slopes, covariance = _fit(studies)
    alone = np.array([_fit([study])[0] for study in studies])
    between = np.diag(alone.var(axis=0, ddof=1) if len(studies) > 1 else (UNKNOWN_SPREAD * slopes) ** 2)
    errors = [_error(study, _fit([s for s in studies if s is not study] or studies)[0]) for study in studies]
    tokens = sorted(study.tokens for study in studies)[len(studies) // 2]
    scale = float(f"{np.exp(np.mean(np.log([study.lr_scale for study in studies]))):.3g}")  # as a calibration rounds it
    return Rates(slopes, covariance + between, float(np.sqrt(np.mean(np.square(errors)))), tokens, tuple(named), scale)


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


def save_rates(rates: Rates, path: Path) -> None:
    """Write rates as JSON, atomically; ``qra_bo.searchers.rates.model.load_rates`` reads them."""
    write_json(path, {
        "schema_version": SCHEMA_VERSION, "sources": list(rates.sources),
        "slopes": dict(zip(NAMES, rates.slopes.tolist(), strict=True)), "covariance": rates.covariance.tolist(),
        "error": rates.error, "tokens": rates.tokens, "lr_scale": rates.lr_scale})
