"""Exchange rates between bits and ranks: an additive model of the loss with few slopes, learned from earlier trials.

    loss = level + a sum_l I_q + b sum_l sqrt(I_q) - c sum_l share_l log2 r_l

``I_q`` is the quantisation sensitivity of unit ``l`` in its format as KL divergence from the 16-bit model (nats),
``share_l`` its share of the parameters. (The rise of the loss on a profile's few sequences has more noise, and an
optimum picks the units where noise makes few bits look harmless.) Slopes are at least 0 and the same for all units, so
that those of one text or model say something about another; the level is each study's own. (An interaction of
sensitivity and rank, and the measured rank sensitivity in place of ``log2 r``, did not predict the rows of an unseen
table better.)

Damage by few bits heals while adapters are trained, and what a rank is worth grows. A slope learned from trainings
of ``s`` tokens is taken to be ``(T / s)^e`` times as large at ``T`` tokens. The exponents are those of
``bench/results/length_model.json`` (commit 80dfe91): one model, one text, 24 to 240 steps of 512 tokens. They are of
the ratio of two lengths: first of a trial and those that taught the slopes, then of a longer training and a trial.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge
from pydantic import FiniteFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as checked

from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.importance import sensitivity_scales
from qra_bo.sensitivity.profile import Stored
from qra_bo.space import Allocation, FloatArray
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.fields import model_of
from qra_bo.utils.files import strict_json, user_path

NAMES = ("sensitivity", "root_sensitivity", "log2_rank")
"""The slopes: nats of loss a nat of I_q, a root nat of it, and a doubling of every rank (there a gain)."""
EXPONENTS = np.array([-0.16, -0.16, 0.22])
"""Of the slopes, in the order of ``NAMES``."""
DEVIATIONS = np.array([0.01, 0.01, 0.08])
"""Standard deviations of the exponents."""
LONGEST = 10.0
"""Longest ratio that was measured; beyond it the rates stay as they are there."""
SCHEMA_VERSION = 5
_STORED = model_of(sources=list[str], slopes=dict[str, Annotated[FiniteFloat, Ge(0)]],
                   covariance=list[list[FiniteFloat]], error=Annotated[FiniteFloat, Ge(0)], tokens=PositiveInt,
                   lr_scale=PositiveFloat)
"""``Rates`` as a file holds them."""


@checked(frozen=True)
class Change:
    """What a longer training changes in the loss of an allocation, but for a constant (nats).

    Args:
        formats: Names of the formats, in the order of ``by_format``.
        by_format: Of every unit in every format, ``L x F``.
        per_doubling: Of a doubling of every unit's rank, ``L``.
    """

    formats: tuple[str, ...]
    by_format: Stored
    per_doubling: Stored

    def of(self, allocation: Allocation) -> float:
        """Return the change of an allocation with these formats; its ranks need not be on a ladder."""
        columns = [self.formats.index(f) for f in allocation.formats]
        ranks = np.log2(np.array(allocation.ranks, dtype=np.float64))
        return float(self.by_format[np.arange(len(columns)), columns].sum() + self.per_doubling @ ranks)


@dataclass(frozen=True)
class Rates:
    """Learned slopes with their uncertainty.

    Args:
        slopes: In the order of ``NAMES``, at least 0.
        covariance: Of the slopes for a new task, ``3 x 3``: of their estimate, and between the studies.
        error: Standard deviation of what the model leaves unexplained in a difference of two good allocations (nats),
            on studies that it was not fitted to where there are several.
        tokens: Training tokens of the trials that it was learned from.
        sources: The studies that it was learned from, in words.
        lr_scale: Factor on the learning rate that a trainer has for a model: the geometric mean of the calibrated ones.
    """

    slopes: FloatArray
    covariance: FloatArray
    error: float
    tokens: int
    sources: tuple[str, ...]
    lr_scale: float = 1.0

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


def terms(problem: SearchProblem) -> FloatArray:
    """Return the terms of the model by unit, format and rank, ``L x F x R x 3``: what ``slopes`` multiply."""
    level, root = sensitivity_scales(problem.profile.quantization_kl)
    ranks = np.log2(np.array(problem.space.ranks, dtype=np.float64))
    parts = (level[:, :, None], root[:, :, None], -problem.space.unit_share[:, None, None] * ranks)
    return np.stack([np.broadcast_to(part, problem.costs.shape) for part in parts], axis=-1)


def rows_terms(problem: SearchProblem, rows: FloatArray) -> FloatArray:
    """Return the terms of ``n x 2 L`` rows, ``n x 3``; rank positions may be fractional."""
    table, n_units = terms(problem), problem.space.n_units
    units, formats, position = np.arange(n_units), rows[:, :n_units].astype(np.int64), rows[:, n_units:]
    low = np.floor(position).astype(np.int64)
    below, above = (table[units, formats, r] for r in (low, np.minimum(low + 1, table.shape[2] - 1)))
    return np.asarray((below + (position - low)[..., None] * (above - below)).sum(axis=1))


def at_length(rates: Rates, tokens: int) -> Rates:
    """Return the rates of trainings of ``tokens`` tokens; their covariance holds that of the exponents."""
    log_ratio = math.log(min(tokens / rates.tokens, LONGEST))
    factors = np.exp(EXPONENTS * log_ratio)
    slopes = rates.slopes * factors
    covariance = rates.covariance * np.outer(factors, factors) + np.diag((slopes * DEVIATIONS * log_ratio) ** 2)
    return replace(rates, slopes=slopes, covariance=covariance, tokens=tokens)


def of_training(rates: Rates, problem: SearchProblem, steps: int) -> Rates:
    """Return the rates of trainings of ``steps`` steps of the problem's trainer, carried there from its trials."""
    return at_length(at_length(rates, problem.trial_tokens), steps * problem.step_tokens)


def change(rates: Rates, problem: SearchProblem, before: int, after: int) -> Change:
    """Return what trainings of ``after`` steps change in the losses of those of ``before`` steps, by the rates."""
    level, root = sensitivity_scales(problem.profile.quantization_kl)
    early, late = (of_training(rates, problem, steps) for steps in (before, after))
    a, b, c = late.slopes - early.slopes
    return Change(tuple(f.name for f in problem.space.formats), np.asarray(a * level + b * root),
                  np.asarray(-c * problem.space.unit_share, dtype=np.float64))


def change_of_difference(rates: Rates, problem: SearchProblem, allocation: FloatArray, reference: FloatArray,
                         before: int, after: int) -> tuple[float, float]:
    """Return mean and standard deviation (nats) of what trainings of ``after`` steps add to the difference of two rows
    after ``before`` steps; the rows are as in ``Rates.difference``."""
    apart = np.subtract(*rows_terms(problem, np.stack([allocation, reference])))
    early, late = (of_training(rates, problem, steps) for steps in (before, after))
    grown = np.divide(late.slopes, early.slopes, out=np.ones(len(NAMES)), where=early.slopes > 0)
    log_ratio = math.log(np.divide(*np.minimum((late.tokens, early.tokens), LONGEST * problem.trial_tokens)))
    covariance = early.covariance * np.outer(grown - 1, grown - 1)
    covariance += np.diag((late.slopes * DEVIATIONS * log_ratio) ** 2)
    return float(apart @ (late.slopes - early.slopes)), math.sqrt(max(0.0, float(apart @ covariance @ apart)))


def shipped_rates() -> dict[str, Path]:
    """Return the file of every set of rates that comes with the package, by its name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.json"))}


def rates_file(given: str) -> Path:
    """Return the file that ``surrogate.rates`` names: one that comes with the package, or the user's own."""
    return shipped_rates().get(given) or user_path(given)


def _read(given: str) -> bytes:
    try:
        return rates_file(given).read_bytes()
    except OSError as error:
        raise ConfigError(f"{given}, what earlier runs taught, can't be read ({error.strerror}); give surrogate.rates "
                          "a file of exchange rates") from error


def rates_sha256(given: str) -> str:
    """Return the hash of the file that ``surrogate.rates`` names; raises ``ConfigError`` if it can't be read."""
    return hashlib.sha256(_read(given)).hexdigest()


def load_rates(given: str) -> Rates:
    """Read rates from a file (``bench.rates.save_rates`` writes them), or those that come with the package by name.
    Raises ``ConfigError`` if the file can't be read or holds no rates."""
    try:
        data = strict_json(_read(given))
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {data['schema_version']!r}, this release reads {SCHEMA_VERSION}")
        stored = _STORED.model_validate(data)
        covariance = np.array(stored.covariance)
        if covariance.shape != (len(NAMES), len(NAMES)) or np.linalg.eigvalsh(covariance).min() < -1e-12:
            raise ValueError(f"the covariance must be positive and {len(NAMES)} x {len(NAMES)}")
        return Rates(np.array([stored.slopes[name] for name in NAMES]), covariance, stored.error, stored.tokens,
                     tuple(stored.sources), stored.lr_scale)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{rates_file(given)} holds no exchange rates: {error}") from error
