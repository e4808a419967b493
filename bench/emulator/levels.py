"""Effect of training seeds on a table: the level by which each moves all losses, and the remaining noise."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.emulator.table import TableRow, pooled
from qra_bo.space import Allocation, FloatArray
from qra_bo.utils.errors import DataError

PASSES = 3
"""Levels need the noise as weights, and the noise needs the levels."""
LEAST_SHARED = 3
"""Allocations that a training seed must share with the first for its level to be estimated."""
LEAST_PERSISTING = 8
"""Repeated losses from which the correlation of early and late noise is estimated."""


@dataclass(frozen=True)
class Noise:
    """Standard deviation of a loss over training seeds, the shared level taken out, as a function of the loss.

    Args:
        losses: Mean loss of the better and of the worse half of the repeated allocations.
        deviations: Standard deviation of each half (nats).
        level: Standard deviation of the shared level (nats).
        early: For each early look, its deviation over that at the end, and the correlation of the two.
    """

    losses: tuple[float, float]
    deviations: tuple[float, float]
    level: float
    early: tuple[tuple[float, float], ...] = ()

    def at(self, loss: FloatArray) -> FloatArray:
        """Return the standard deviation at each loss, interpolated between the halves."""
        return np.interp(loss, self.losses, self.deviations)


@dataclass(frozen=True)
class Levelled:
    """Losses of a table as if all were of the first training seed.

    Args:
        allocations: Distinct allocations, ``n``.
        targets: Mean loss after every recorded number of steps, the last being all of them, ``n x S``; NaN where it
            was not recorded.
        counts: Losses pooled in the last column, ``n``.
        noise: Noise of one loss.
    """

    allocations: tuple[Allocation, ...]
    targets: FloatArray
    counts: FloatArray
    noise: Noise


def levelled(rows: Sequence[TableRow], first_seed: int, rate: float) -> Levelled:
    """Pool rows of a table over training seeds.

    Rows of one seed and one factor on the learning rate form a group; its level is its mean difference from the group
    of ``first_seed`` and ``rate``, those of the table, over the allocations that both hold, weighed by their noise.

    Raises:
        DataError: If no allocation was repeated, so that the noise is unknown.
    """
    groups: dict[tuple[int, float], list[TableRow]] = defaultdict(list)
    for row in pooled(rows):
        groups[row.train_seed, row.lr_scale].append(row)
    home = first_seed, rate
    base = {row.allocation: _curve(row) for row in groups.get(home, [])}
    noise = None
    for _ in range(PASSES):
        level = {home: np.zeros(len(next(iter(base.values()))))} if base else {}
        for group, members in groups.items():
            shared = [row for row in members if row.allocation in base]
            if group != home and len(shared) >= LEAST_SHARED:
                level[group] = level_of([_curve(row) - base[row.allocation] for row in shared],
                                      np.array([base[row.allocation][-1] for row in shared]), noise)
        by_seed: dict[Allocation, dict[int, list[FloatArray]]] = defaultdict(lambda: defaultdict(list))
        for group, shift in level.items():
            for row in groups[group]:
                by_seed[row.allocation][row.train_seed].append(_curve(row) - shift)
        noise = _noise(by_seed, [float(shift[-1]) for group, shift in level.items() if group != home])
    assert noise is not None
    curves = {a: [c for found in seeds.values() for c in found] for a, seeds in by_seed.items()}
    return Levelled(tuple(curves), np.array([_mean(found) for found in curves.values()]),
                    np.array([float(len(found)) for found in curves.values()]), noise)


def level_of(differences: Sequence[FloatArray], losses: FloatArray, noise: Noise | None) -> FloatArray:
    """Return the mean of ``m`` differences after every look, ``S``, each weighed by the noise at its loss (``m``)."""
    return _mean(differences, None if noise is None else 1.0 / np.maximum(noise.at(losses), 1e-6) ** 2)


def _curve(row: TableRow) -> FloatArray:
    return np.array([*(np.nan if x is None else x for x in row.early), row.loss], dtype=np.float64)


def _mean(curves: Sequence[FloatArray], weights: FloatArray | None = None) -> FloatArray:
    """Return the weighted mean over ``m`` curves, ``S``; NaN where no curve has a value."""
    stacked = np.array(curves)
    known = np.isfinite(stacked) * (1.0 if weights is None else weights[:, None])
    total, weight = (np.where(np.isfinite(stacked), stacked, 0.0) * known).sum(axis=0), known.sum(axis=0)
    return np.where(weight > 0, total / np.maximum(weight, 1e-300), np.nan)


def _noise(curves: Mapping[Allocation, Mapping[int, Sequence[FloatArray]]], levels: Sequence[float]) -> Noise:
    """Return the pooled deviation of repeats from their allocation's mean, of the better and the worse half."""
    by_allocation = [np.array([_mean(c) for c in seeds.values()]) for seeds in curves.values() if len(seeds) > 1]
    repeated = sorted(by_allocation, key=lambda c: float(c[:, -1].mean()))
    if len(repeated) < 2:
        raise DataError("a table needs at least 2 allocations with repeats on other training seeds to know its noise; "
                        f"it has {len(repeated)}: collect more rows")
    halves = repeated[:len(repeated) // 2], repeated[len(repeated) // 2:]
    deviations = []
    for half in halves:
        squares = sum(float(((c[:, -1] - c[:, -1].mean()) ** 2).sum()) for c in half)
        deviations.append(float(np.sqrt(squares / sum(len(c) - 1 for c in half))))
    middle = [float(np.mean([c[:, -1].mean() for c in half])) for half in halves]
    spread = float(np.sqrt(np.mean(np.square(levels)))) if levels else 0.0
    noise = Noise((middle[0], middle[1]), (deviations[0], deviations[1]), spread)
    return replace(noise, early=tuple(_persistence(repeated, noise, look) for look in range(repeated[0].shape[1] - 1)))


def _persistence(repeated: Sequence[FloatArray], noise: Noise, look: int) -> tuple[float, float]:
    """Return the deviation of an early look over that at the end, and their correlation (at least 0), over repeats that
    hold both, each in units of the noise at its loss; 1 and 0 where there are too few."""
    scaled = []
    for curves in repeated:
        both = curves[np.isfinite(curves[:, look])][:, [look, -1]]
        scale = float(noise.at(both[:, 1:].mean(keepdims=True))[0, 0]) if len(both) > 1 else 0.0
        if scale > 0:
            scaled.append((both - both.mean(axis=0)) / scale)
    stacked = np.concatenate(scaled) if scaled else np.zeros((0, 2))
    early, late = (float(squares) for squares in (stacked**2).sum(axis=0))
    if len(stacked) < LEAST_PERSISTING or min(early, late) == 0:
        return 1.0, 0.0
    shared = float(stacked[:, 0] @ stacked[:, 1]) / np.sqrt(early * late)
    return float(np.sqrt(early / late)), float(np.clip(shared, 0.0, 1.0))
