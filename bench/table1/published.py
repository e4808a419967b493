"""The published searches at another cost than theirs: what they may spend, and populations shrunk to it."""

from collections.abc import Mapping, Sequence
from typing import Any

from qra_bo.config import RunConfig

POPULATION, GENERATIONS, PROMOTIONS = 40, 13, 6
"""Of the published first stage (12 to 15 generations)."""
FIRST_STAGE = 0.6
"""Of what a published search may spend on its proposals, the first stage's."""


def calibration_and_baselines(config: RunConfig) -> float:
    """High-fidelity equivalents that a search spends before its first proposal, but for the profile."""
    effort, scales = config.effort, config.calibrate.lr_scales
    baselines = effort.uniform_baselines if effort.uniform_baselines is not None else 2 * len(config.format_names) + 1
    return float(baselines + (len(scales) * effort.calibration_baselines if len(scales) > 1 else 0))


def proposals_left(config: RunConfig) -> float:
    """High-fidelity equivalents that a search may spend on proposals."""
    return max(2.0, config.effort.max_full_trials - calibration_and_baselines(config) - 1.0)


def scaled_autoqra(config: RunConfig) -> Mapping[str, Any]:
    """The published population, generations and promotions, all shrunk alike to what the first stage may spend."""
    low = 1.0 if config.fidelity.low is None else config.fidelity.low / config.fidelity.high
    return shrunk_autoqra(proposals_left(config), config.effort.max_full_trials, low)


def shrunk_autoqra(proposals: float, equivalents: float, low: float) -> Mapping[str, Any]:
    """The published numbers for a search that may spend ``proposals`` of its ``equivalents`` on proposals, with a low
    fidelity of the share ``low`` of the high one's steps."""
    generation = POPULATION * low + PROMOTIONS * (1 - low)
    shrink = (FIRST_STAGE * proposals / (GENERATIONS * generation)) ** 0.5
    return {"first": {"population": max(4, round(POPULATION * shrink)),
                          "generations": max(2, round(GENERATIONS * shrink)),
                          "promote": max(1, round(PROMOTIONS * shrink))},
            "share": min(1.0, FIRST_STAGE * proposals / equivalents)}


def scaled_qr_adaptor(config: RunConfig) -> Mapping[str, Any]:
    """As many generations as candidates in each, as far as the first stage's share goes."""
    first = FIRST_STAGE * proposals_left(config)
    population = max(4, round(first**0.5))
    return {"first": {"population": population, "generations": max(1, round(first / population))},
            "share": min(1.0, first / config.effort.max_full_trials)}


def published_changes(config: RunConfig, ranks: Sequence[int]) -> dict[str, Any]:
    """What the published searches change: their ladder of ranks, and plain LoRA."""
    return {"ranks": tuple(ranks), "adapter": config.adapter.with_changes(init="kaiming")}
