"""Rules of a study: how a learning rate is calibrated, and which trials are still missing."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from bench.study.plan import Arm
from qra_bo.study.baselines import next_rate
from qra_bo.study.setting import training_seeds
from qra_bo.trials import TrialResult, TrialSpec

SEARCH_SEED, _ = training_seeds(0, 0)
"""Training seed of the calibrations: that of a search with ``seed=0``."""
Find = Callable[[str, TrialSpec], TrialResult | None]
"""Returns the finished trial of a setting and a spec."""


@dataclass(frozen=True)
class Planned:
    """A trial that is missing."""

    arm: Arm
    spec: TrialSpec


@dataclass
class Settled:
    """What the finished trials say of an arm.

    Args:
        tried: Validation loss by learning rate, infinite where there was none.
        rate: Its learning rate, once that is fixed or calibrated.
        tested: Result on the test split by unseen training seed.
        missing: Trials that can be named already, in order.
    """

    arm: Arm
    tried: dict[float, float] = field(default_factory=dict)
    rate: float | None = None
    tested: dict[int, TrialResult] = field(default_factory=dict)
    missing: list[Planned] = field(default_factory=list)

    @property
    def losses(self) -> dict[int, float]:
        """Test loss by unseen seed, of trials that have one."""
        return {seed: result.loss for seed, result in self.tested.items() if result.loss is not None}


def settle(arm: Arm, find: Find) -> Settled:
    """Follow the rules as far as the finished trials go."""
    settled, comparison = Settled(arm), arm.comparison

    def result(seed: int, rate: float, split: str) -> TrialResult | None:
        spec = TrialSpec(arm.allocation, arm.steps, arm.steps, train_seed=seed, learning_rate=rate, split=split,
                         codes=arm.choice.codes)
        found = find(arm.setting, spec)
        if found is None:
            settled.missing.append(Planned(arm, spec))
        return found

    settled.rate = arm.choice.rate(arm.steps)
    if settled.rate is None:
        waiting: list[float | None] = list(comparison.learning_rates)
        while (rate := waiting.pop(0) if waiting else next_rate(settled.tried, comparison.most_rates)) is not None:
            found = result(SEARCH_SEED, rate, "validation")
            if found is None:
                return settled
            settled.tried[rate] = math.inf if found.loss is None else found.loss
        settled.rate = min(settled.tried, key=lambda rate: settled.tried[rate])
    for seed in training_seeds(0, comparison.seeds)[1]:
        if (found := result(seed, settled.rate, "test")) is not None:
            settled.tested[seed] = found
    return settled


def missing(comparisons: Iterable[list[Arm]], find: Find) -> Iterator[Planned]:
    """Yield the missing trials of comparisons: calibrations first, then all arms of one seed before the next."""
    for arms in comparisons:
        settled = [settle(arm, find) for arm in arms]
        yield from (s.missing[0] for s in settled if s.rate is None)
        tests = [planned for s in settled if s.rate is not None for planned in s.missing]
        for seed in training_seeds(0, arms[0].comparison.seeds)[1]:
            yield from (planned for planned in tests if planned.spec.train_seed == seed)
