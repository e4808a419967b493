"""Student-t intervals of paired differences, and rank correlation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qra_bo.utils.errors import ConfigError

LEVEL = 0.95
"""Coverage of an interval."""
LEAST_SEEDS = 5
"""Fewest training seeds with which a difference may be called better."""
AGAIN = f"Search again with confirm.seeds={LEAST_SEEDS} and another out=."
"""Action where seeds are missing: a run goes on with its own number of them alone."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean of paired differences with the bounds of its 95 % Student-t interval, in the unit of the differences."""

    mean: float
    low: float
    high: float


def paired_interval(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """Return mean and interval of ``n`` paired differences: mean +- t((1 + level) / 2, n - 1) s / sqrt(n).

    Raises:
        ConfigError: If there are fewer than two.
    """
    from scipy.special import stdtrit  # slow to import, and needed once a run
    n = len(differences)
    if n < 2:
        raise ConfigError(f"an interval needs at least 2 paired differences, got {n}; raise confirm.seeds")
    values = np.asarray(differences, dtype=np.float64)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(values.std(ddof=1)) / math.sqrt(n)
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the rank correlation with average ranks for ties; ``None`` if a side is constant or shorter than two."""
    x, y = _average_ranks(a), _average_ranks(b)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _average_ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return ranks from 1; equal values share their mean rank."""
    x = np.asarray(values, dtype=np.float64)
    ordered = np.sort(x)
    ranks: npt.NDArray[np.float64] = (ordered.searchsorted(x, "left") + ordered.searchsorted(x, "right") + 1) / 2
    return ranks
