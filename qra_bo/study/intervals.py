"""Student-t intervals of paired differences over training seeds and held-out text, and rank correlation."""

import math
from collections.abc import Sequence

import numpy as np

from qra_bo.study.events import Interval
from qra_bo.trials import SequenceLosses, by_document
from qra_bo.utils.errors import ConfigError

LEVEL = 0.95
"""Coverage of an interval."""
LEAST_SEEDS = 5
"""Fewest training seeds with which a difference may be called better."""
AGAIN = f"Search again with confirm.seeds={LEAST_SEEDS} and another out=."
"""Action where seeds are missing: a run goes on with its own number of them alone."""


def paired_interval(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """Return mean and interval of ``n`` paired differences, two or more: mean +- t((1 + level) / 2, n - 1) s / sqrt(n).
    """
    n, values = len(differences), np.asarray(differences, dtype=np.float64)
    return _around(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n), n - 1, level)


def _around(mean: float, error: float, freedom: float, level: float) -> Interval:
    """Return the Student-t interval of a mean with a standard error."""
    from scipy.special import stdtrit  # slow to import, and needed once a run
    half = float(stdtrit(freedom, (1 + level) / 2)) * error
    return Interval(mean, mean - half, mean + half)


def two_way_interval(candidate: Sequence[SequenceLosses], reference: Sequence[SequenceLosses],
                     level: float = LEVEL) -> Interval:
    """Return the mean difference of two allocations over ``n`` training seeds and ``m`` held-out documents, with an
    interval that holds for other seeds and for other documents of the same kind.

    Sequences of one document err alike, so that they are summed (where all are of one, each stands for itself). Seeds
    and documents are crossed: all seeds were evaluated on the same text. The variance of the mean is that over seeds,
    plus that over documents (of a ratio: losses are summed, and divided by all target tokens), less that of their
    interaction, which both of them hold. Degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946), below
    ``LEAST_SEEDS`` at most those of the seeds.

    Args:
        candidate: For each seed, the losses of every sequence.
        reference: The same of the allocation that it is compared with, of the same seeds and sequences in order.
        level: Coverage.

    Raises:
        ConfigError: If there are fewer than two seeds or sequences, or the two sides differ in them.
    """
    sides = [by_document(side) for side in (candidate, reference)]
    if sides[0].shape != sides[1].shape or sides[0].ndim != 3 or min(sides[0].shape[:2]) < 2 \
            or not np.array_equal(sides[0][..., 1], sides[1][..., 1]):
        raise ConfigError("an interval over seeds and text needs at least two training seeds and two sequences, the "
                          f"same of both sides; got losses of shape {sides[0].shape} and {sides[1].shape}")
    summed, tokens = sides[0][..., 0] - sides[1][..., 0], sides[0][0, :, 1]
    n, m = summed.shape
    by_seed = summed.sum(axis=1) / tokens.sum()
    mean = float(by_seed.mean())
    left = (summed - by_seed[:, None] * tokens) * m / tokens.sum()  # what each document adds to its seed's mean, n x m
    of_text = left.mean(axis=0)
    seeds, text = float(by_seed.var(ddof=1)) / n, float(of_text.var(ddof=1)) / m
    both = float(np.square(left - of_text).sum()) / ((n - 1) * (m - 1) * n * m)
    variance = max(seeds + text - both, seeds, text)
    if variance == 0:
        return Interval(mean, mean, mean)
    freedom = variance ** 2 / (seeds ** 2 / (n - 1) + text ** 2 / (m - 1))
    if n < LEAST_SEEDS:  # so few seeds may show far too little of their variance
        freedom = min(freedom, n - 1)
    return _around(mean, math.sqrt(variance), freedom, level)


def interval_of(differences: Sequence[float], candidate: Sequence[SequenceLosses],
                reference: Sequence[SequenceLosses], level: float = LEVEL) -> tuple[Interval, bool]:
    """Return the interval of paired ``differences``, and whether it holds for other held-out text too: where both sides
    have the losses of every sequence, for each training seed in order."""
    if all(len(losses) > 1 for losses in (*candidate, *reference)):
        return two_way_interval(candidate, reference, level), True
    return paired_interval(differences, level), False


def text_interval(candidate: SequenceLosses, reference: SequenceLosses) -> Interval | None:
    """Return the difference of two models' mean losses on the same held-out sequences (nats a token), with an interval
    for other documents of the same kind; ``None`` of fewer than two sequences."""
    sides = [by_document([side]) for side in (candidate, reference)]
    if len(candidate) < 2 or sides[0].shape != sides[1].shape:
        return None
    mean = float((sides[0] - sides[1])[0, :, 0].sum() / sides[1][0, :, 1].sum())
    return _around(mean, text_error([candidate], [reference]), sides[0].shape[1] - 1, LEVEL)


def text_error(candidate: Sequence[SequenceLosses], reference: Sequence[SequenceLosses]) -> float:
    """Return the standard error over held-out text of the mean difference of trainings in pairs, in nats a token; 0
    where the losses of fewer than two sequences are known. Arguments are as those of ``two_way_interval``."""
    sides = [by_document(side) for side in (candidate, reference)]
    if any(side.ndim != 3 or side.shape[1] < 2 for side in sides):
        return 0.0
    summed, tokens = (sides[0] - sides[1])[..., 0].mean(axis=0), sides[0][0, :, 1]
    left = summed - summed.sum() / tokens.sum() * tokens
    return float(math.sqrt(len(left)) * left.std(ddof=1) / tokens.sum())
