"""Learning rate of a row's final configuration: one rule and one largest number of trials for every row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Trial = Callable[[float], float | None]
"""Validation loss at a factor on the learning rate; ``None`` for a failed trial."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Result of the learning-rate trials.

    Args:
        lr_scale: Chosen factor on the rule's learning rate.
        trials: ``(factor, loss)`` of the trials with a loss, by factor.
        inside: Whether the best factor lies between others.
    """

    lr_scale: float
    trials: tuple[tuple[float, float], ...]
    inside: bool

    def to_json(self) -> dict[str, Any]:
        return {"lr_scale": self.lr_scale, "trials": [list(t) for t in self.trials], "inside": self.inside}


def calibrate(scales: Sequence[float], most: int, trial: Trial) -> Rate | None:
    """Try ``scales``, and factors beyond an end while the best is there; return ``None`` if no trial has a loss.

    The choice is the vertex of the parabola through the best trial and its
    neighbours, if it lies between them.

    Args:
        scales: Increasing factors, at least one.
        most: Largest number of trials.
        trial: Makes one trial.
    """
    tried: dict[float, float | None] = {}
    for scale in scales:
        tried[scale] = trial(scale)
    while len(tried) < most and (beyond := _beyond(tried)) is not None:
        tried[beyond] = trial(beyond)
    done = sorted((s, loss) for s, loss in tried.items() if loss is not None)
    if not done:
        return None
    scale, inside = best_scale(done)
    return Rate(scale, tuple(done), inside)


def _beyond(tried: dict[float, float | None]) -> float | None:
    """Return the next factor beyond the end at which the best is, in the ratio of the last two; else ``None``."""
    if len(tried) < 2:
        return None
    order = sorted(tried)
    done = {s: loss for s, loss in tried.items() if loss is not None}
    best = min(done, key=done.__getitem__, default=None)
    if best is None or best == order[0]:  # where all diverged, smaller ones may not
        return float(f"{order[0] * order[0] / order[1]:.6g}")
    return float(f"{best * best / order[-2]:.6g}") if best == order[-1] else None


def best_scale(trials: Sequence[tuple[float, float]]) -> tuple[float, bool]:
    """Return the factor with the least loss, and whether it lies inside those tried.

    Near its optimum the loss is a parabola in the logarithm of the rate, and differences between the factors tried
    are as small as the noise: the vertex of the parabola through the best and its neighbours is used, where it is one
    and lies between them.

    Args:
        trials: ``(factor, mean loss)`` by increasing factor, at least one.
    """
    scales, losses = np.log([s for s, _ in trials]), np.array([loss for _, loss in trials])
    at = int(losses.argmin())
    inside = 0 < at < len(trials) - 1 if len(trials) > 2 else True
    if len(trials) >= 3:
        first = min(max(at - 1, 0), len(trials) - 3)  # the best and its neighbours: far trials are on no parabola
        near = slice(first, first + 3)
        curvature, slope, _ = np.polyfit(scales[near], losses[near], 2)
        if curvature > 0:
            vertex = -slope / (2 * curvature)
            if scales[near].min() < vertex < scales[near].max():
                return float(f"{np.exp(vertex):.3g}"), True  # few digits, for it is part of the trials' keys
    return trials[at][0], inside
