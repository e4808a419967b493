"""Calibrating the learning rate: which uniform choices it is tried on, and what the trials say."""

from collections.abc import Sequence

import numpy as np

from qra_bo.space import Allocation, uniform

DIGITS = 3
"""Significant digits of the chosen factor: it names evaluations."""


def calibration_choices(anchor: Allocation, n: int) -> list[Allocation]:
    """``n`` uniform choices in the format of ``uniform baseline``, from its rank r down to about r / 4 in equal ratios.

    A search trades ranks for bits, so the rate must suit smaller ranks too; a single choice has rank about r / 2.

    Args:
        uniform baseline: The most promising uniform choice.
        n: How many; fewer where small ranks coincide.
    """
    rank, fmt = anchor.ranks[0], anchor.formats[0]
    powers = [0.5] if n == 1 else [i / (n - 1) for i in range(n)]
    ranks = dict.fromkeys(max(1, round(rank / 4**power)) for power in powers)
    return [uniform(len(anchor), fmt, r) for r in ranks]


def best_scale(trials: Sequence[tuple[float, float]]) -> tuple[float, bool]:
    """The factor with the least loss, and whether it lies inside those tried.

    Near its optimum the loss is a parabola in the logarithm of the rate, and differences between the factors tried
    are as small as the noise: the vertex of the parabola through the best and its neighbours is used, where it is one
    and lies between them.

    Args:
        trials: ``(factor, mean loss)``, at least one.
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
                return float(f"{np.exp(vertex):.{DIGITS}g}"), True
    return trials[at][0], inside
