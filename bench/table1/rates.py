"""The learning rate of a row's final configuration: the same rule, and the same most trials, for every row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qra_bo.study.baseline_trials import best_scale

Trial = Callable[[float], float | None]
"""Validation loss at a factor on the learning rate; ``None`` where there was none."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What the trials came to.

    Args:
        lr_scale: Chosen factor on the rule's learning rate.
        trials: ``(factor, loss)`` of those that gave a loss, by factor.
        inside: Whether the best lies between others that were tried.
    """

    lr_scale: float
    trials: tuple[tuple[float, float], ...]
    inside: bool

    def to_json(self) -> dict[str, Any]:
        return {"lr_scale": self.lr_scale, "trials": [list(t) for t in self.trials], "inside": self.inside}


def calibrate(scales: Sequence[float], most: int, trial: Trial) -> Rate | None:
    """Try ``scales``; while the best is at an end and fewer than ``most`` were tried, one more beyond that end.

    The choice is the vertex of the parabola through the best trial and its neighbours where it has one between them,
    as in a search's own calibration. ``None`` if no trial gave a loss.

    Args:
        scales: Increasing factors, at least one.
        most: Of all trials, those beyond the ends included.
        trial: See there.
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
    """The next factor outwards where the best is at an end of all that were tried, in the ratio of the last two."""
    if len(tried) < 2:
        return None
    order = sorted(tried)
    done = {s: loss for s, loss in tried.items() if loss is not None}
    best = min(done, key=done.__getitem__, default=None)
    if best is None or best == order[0]:  # where all diverged, smaller ones may not
        return float(f"{order[0] * order[0] / order[1]:.6g}")
    return float(f"{best * best / order[-2]:.6g}") if best == order[-1] else None
