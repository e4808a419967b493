"""Features of an allocation for the emulators, of each unit and of the whole, and a logarithmic scale for losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.emulator.table import TaskFacts
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, FloatArray
from qra_bo.utils.errors import DataError

THIRDS = 3
LEADING = 3
"""Number of the most sensitive units whose mean is a feature."""
SHARE = 0.5


class Describer:
    """Features of allocations, from a table's facts and its sensitivities; any integer rank has them.

    Args:
        facts: Facts of the table; ``L`` units and ``F`` formats.
        profile: Sensitivities of the same units and formats.
    """

    def __init__(self, facts: TaskFacts, profile: SensitivityProfile) -> None:
        if profile.units != facts.units or profile.formats != facts.formats:
            raise DataError(f"the profile of the table {facts.task} is of other units or formats than its rows")
        level = np.clip(profile.quantization_sensitivity, 0.0, None)
        self._level = np.maximum.accumulate(level[:, ::-1], axis=1)[:, ::-1]
        self._kl = np.clip(profile.quantization_kl, 0.0, None)
        gain = np.clip(profile.require_rank_sensitivity(), 0.0, None)
        self._gain = np.sqrt(np.hstack([np.zeros((len(gain), 1)), gain]) / gain.mean())
        self._index = {name: i for i, name in enumerate(facts.formats)}
        self._largest, self.n_units = max(facts.ranks), len(facts.units)

    def units(self, allocations: Sequence[Allocation]) -> FloatArray:
        """Return features of every unit, ``n x L x m``.

        They are: quantisation sensitivity, its root, root of the divergence, log2 of the rank, root of the rank
        sensitivity, root of the quantisation sensitivity times log2 of the rank, depth, an indicator of each format.

        Raises:
            DataError: If an allocation has another number of units or a format off the ladder.
        """
        q, ranks = self._codes(allocations)
        at = np.arange(self.n_units)[None, :]
        level, root = self._level[at, q], np.sqrt(self._level[at, q])
        log_rank = np.log2(np.maximum(ranks, 1))
        gain = self._gain[at, np.minimum(ranks, self._gain.shape[1] - 1)]
        depth = np.broadcast_to(np.linspace(0.0, 1.0, self.n_units)[None, :], q.shape)
        numbers = [level, root, np.sqrt(self._kl[at, q]), log_rank / np.log2(self._largest), gain, root * log_rank,
                   depth, *((q == f).astype(np.float64) for f in self._index.values())]
        return np.stack(numbers, axis=-1)

    def whole(self, allocations: Sequence[Allocation]) -> FloatArray:
        """Return features of every allocation, ``n x k``.

        They are: means over units, shares of formats, means over thirds of the depth, the mean root sensitivity of the
        most sensitive units, and the spread of the ranks.
        """
        units = self.units(allocations)
        means = units[..., [0, 1, 2, 3, 4, 5]].mean(axis=1)
        shares = units[..., 7:].mean(axis=1)
        thirds = [part[..., [1, 3]].mean(axis=1) for part in np.array_split(units, THIRDS, axis=1)]
        worst = np.sort(units[..., 1], axis=1)[:, -LEADING:].mean(axis=1, keepdims=True)
        spread = units[..., 3].std(axis=1, keepdims=True)
        return np.hstack([means, shares, *thirds, worst, spread])

    def _codes(self, allocations: Sequence[Allocation]) -> tuple[np.ndarray, np.ndarray]:
        for a in allocations:
            unknown = sorted(set(a.formats) - set(self._index))
            if len(a) != self.n_units or unknown:
                raise DataError(f"the table describes {self.n_units} units in the formats {list(self._index)}; got "
                                f"{len(a)} units{f' and the formats {unknown}' if unknown else ''}")
        q = np.array([[self._index[f] for f in a.formats] for a in allocations], dtype=np.int64)
        ranks = np.array([a.ranks for a in allocations], dtype=np.int64)
        return q.reshape(-1, self.n_units), ranks.reshape(-1, self.n_units)


class Reach:
    """Domain of a table: no further from its rows than these are from one another.

    Distances are between standardised features of the whole (rows: ``n x k``). An allocation is within reach if the
    distance to its nearest row is at most the largest such distance among the rows.
    """

    def __init__(self, features: FloatArray) -> None:
        spread = features.std(axis=0)
        self._mean, self._scale = features.mean(axis=0), np.where(spread > 1e-12, spread, 1.0)
        self._rows = (features - self._mean) / self._scale
        own = self._distances(self._rows)
        np.fill_diagonal(own, np.inf)
        self.limit = float(own.min(axis=1).max())

    def contains(self, features: FloatArray) -> np.ndarray:
        """Return which of ``m x k`` features are within reach, ``m``."""
        nearest = self._distances((features - self._mean) / self._scale).min(axis=1)
        inside: np.ndarray = nearest <= self.limit + 1e-6
        return inside

    def _distances(self, points: FloatArray) -> FloatArray:
        """Return distances to the rows, ``m x n``."""
        squares = (points**2).sum(axis=1)[:, None] + (self._rows**2).sum(axis=1)[None, :] - 2 * points @ self._rows.T
        distances: FloatArray = np.sqrt(np.maximum(squares, 0.0))
        return distances


@dataclass(frozen=True, slots=True)
class Warp:
    """``z = log(1 + (y - best) / offset)``, standardised to mean ``centre`` and deviation ``scale``; linear below best.

    Losses explode at 2 bits and differ by hundredths where it matters: the scale bends at ``offset`` above ``best``,
    the least loss (nats).
    """

    best: float
    offset: float
    centre: float
    scale: float

    @classmethod
    def to(cls, losses: FloatArray) -> "Warp":
        """Return the warp of ``n`` losses: it bends at a share of the gap between the best and the median one."""
        best = float(losses.min())
        offset = max(SHARE * (float(np.median(losses)) - best), 1e-6)
        logs = np.log1p((losses - best) / offset)
        return cls(best, offset, float(logs.mean()), max(float(logs.std()), 1e-9))

    def forward(self, losses: FloatArray) -> FloatArray:
        """Return ``z`` of ``n`` losses."""
        excess = (losses - self.best) / self.offset
        logs = np.where(excess > 0, np.log1p(np.maximum(excess, 0.0)), excess)
        return (logs - self.centre) / self.scale

    def inverse(self, warped: FloatArray) -> FloatArray:
        """Return the losses of ``n`` values of ``z``."""
        logs = warped * self.scale + self.centre
        return self.best + self.offset * np.where(logs > 0, np.expm1(np.maximum(logs, 0.0)), logs)
