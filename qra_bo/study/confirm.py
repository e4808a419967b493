"""The comparison that names the winner: paired differences over unseen training seeds, on the test split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qra_bo.space import Allocation
from qra_bo.utils.errors import ConfigError

LEVEL = 0.95
"""Coverage of the interval."""
LEAST_SEEDS = 5
"""Unseen training seeds below which a difference is not called better."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean of paired differences with a Student-t interval of 95 %."""

    mean: float
    low: float
    high: float


def paired_interval(differences: Sequence[float]) -> Interval:
    """Mean and interval of ``n`` paired differences: mean +- t(0.975, n - 1) s / sqrt(n).

    Raises:
        ConfigError: If there are fewer than two.
    """
    from scipy.special import stdtrit  # needed once a run, and slow to import for a status or a report

    n = len(differences)
    if n < 2:
        raise ConfigError(f"an interval needs at least 2 paired differences, got {n}; raise confirm.seeds")
    values = np.asarray(differences, dtype=np.float64)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * float(values.std(ddof=1)) / math.sqrt(n)
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Confirmation:
    """The winner candidate against the best uniform choice that fits; only seeds that both finished count.

    Args:
        candidate: The best mixed allocation, or the reference itself where the search found none.
        reference: The best uniform choice that fits.
        train_seeds: Unseen training seeds, ``n``.
        candidate_losses: Test losses, ``n``.
        reference_losses: Test losses, ``n``.
        candidate_failed: Whether the candidate failed where the reference did not.
    """

    candidate: Allocation
    reference: Allocation
    train_seeds: tuple[int, ...]
    candidate_losses: tuple[float, ...]
    reference_losses: tuple[float, ...]
    candidate_failed: bool

    @property
    def differences(self) -> tuple[float, ...]:
        """Candidate - reference; negative is in favour of the candidate."""
        return tuple(c - r for c, r in zip(self.candidate_losses, self.reference_losses, strict=True))

    @property
    def winner_kind(self) -> str:
        """``"mixed"`` where the candidate's mean is below the reference's and it never failed alone, else
        ``"uniform"``: the loser of the comparison is not called the winner."""
        better = self.candidate != self.reference and not self.candidate_failed and sum(self.differences) < 0
        return "mixed" if better else "uniform"

    def to_json(self) -> dict[str, Any]:
        """Fields of the journal's confirmation event."""
        interval = paired_interval(self.differences)
        return {"candidate": self.candidate.to_json(), "reference": self.reference.to_json(),
                "train_seeds": list(self.train_seeds), "candidate_losses": list(self.candidate_losses),
                "reference_losses": list(self.reference_losses), "differences": list(self.differences),
                "mean": interval.mean, "low": interval.low, "high": interval.high, "winner_kind": self.winner_kind,
                "candidate_failed": self.candidate_failed, "split": "test"}


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation with average ranks for ties; ``None`` where a side is constant or shorter than two."""
    x, y = _average_ranks(a), _average_ranks(b)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _average_ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    x = np.asarray(values, dtype=np.float64)
    ordered = np.sort(x)
    ranks: npt.NDArray[np.float64] = (ordered.searchsorted(x, "left") + ordered.searchsorted(x, "right") + 1) / 2
    return ranks
