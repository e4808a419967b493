"""The published searches at a smaller cost: their share of the effort, and populations scaled to it."""

from collections.abc import Mapping
from typing import Any

from qra_bo.config import RunConfig

POPULATION, GENERATIONS, PROMOTIONS = 40, 13, 6
"""Of the published first stage (the paper gives 12 to 15 generations)."""
FIRST_STAGE = 0.6
"""Share of the first stage in the cost of a published search's proposals."""


def calibration_and_baselines(config: RunConfig) -> float:
    """Return the full-trial equivalents that a search spends before its first proposal, without the profile."""
    effort, scales = config.effort, config.calibrate.lr_scales
    baselines = effort.uniform_baselines if effort.uniform_baselines is not None else 2 * len(config.format_names) + 1
    return float(baselines + (len(scales) * effort.calibration_baselines if len(scales) > 1 else 0))


def proposals_left(config: RunConfig) -> float:
    """Return the full-trial equivalents that a search may spend on proposals."""
    return max(2.0, config.effort.max_full_trials - calibration_and_baselines(config) - 1.0)


def scaled_autoqra(config: RunConfig) -> Mapping[str, Any]:
    """Return the published options, scaled to the effort of ``config``."""
    low = 1.0 if config.fidelity.low is None else config.fidelity.low / config.fidelity.high
    return shrunk_autoqra(proposals_left(config), config.effort.max_full_trials, low)


def shrunk_autoqra(proposals: float, equivalents: float, low: float) -> Mapping[str, Any]:
    """Return the published population, generations and promotions, scaled by one factor to the first stage's cost.

    Args:
        proposals: Full-trial equivalents that the search may spend on proposals.
        equivalents: Full-trial equivalents of the whole search.
        low: Steps of a low-fidelity trial relative to a full one.
    """
    generation = POPULATION * low + PROMOTIONS * (1 - low)
    shrink = (FIRST_STAGE * proposals / (GENERATIONS * generation)) ** 0.5
    return {"first": {"population": max(4, round(POPULATION * shrink)),
                          "generations": max(2, round(GENERATIONS * shrink)),
                          "promote": max(1, round(PROMOTIONS * shrink))},
            "share": min(1.0, FIRST_STAGE * proposals / equivalents)}


def scaled_qr_adaptor(config: RunConfig) -> Mapping[str, Any]:
    """Return QR-Adaptor's options: about as many generations as candidates in each, within the first stage's share."""
    first = FIRST_STAGE * proposals_left(config)
    population = max(4, round(first**0.5))
    return {"first": {"population": population, "generations": max(1, round(first / population))},
            "share": min(1.0, first / config.effort.max_full_trials)}


def published_changes(config: RunConfig, ranks: tuple[int, ...]) -> dict[str, Any]:
    """Return the configuration changes of the published searches: their ladder of ranks, and plain LoRA."""
    return {"ranks": ranks}
