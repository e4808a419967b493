"""A configuration and what follows from it on one model: space, memory, seeds, and costs in training tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np

from qra_bo.config import RunConfig, gptq_sequences
from qra_bo.memory import MemoryModel, parse_format
from qra_bo.memory.budget import allocation_bytes
from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, CostTable, SearchSpace, average_bits, limit_average_bits
from qra_bo.study.header import BY_RULE, Given
from qra_bo.trials import Trial, TrialState

FINAL = "final"
"""``search.length``: the loss after the final fine-tune is minimised, and not that of a trial."""
TRIES_SHARE = 0.1
"""Most steps of trials of the first learning rates, as a share of those of the final fine-tune that they serve."""


@dataclass(frozen=True)
class BaselineRules:
    """What decides the uniform baselines: names of the search's formats in ladder order, and its largest rank.

    Args:
        predict_bytes: Predicted bytes of any allocation in the configured scope, ranks off the ladder included; grows
            with rank, but for steps where 8-bit moments begin.
        admits: Whether a limit beside the budget allows an allocation, whatever its ranks.
    """

    n_units: int
    formats: tuple[str, ...]
    max_rank: int
    budget_bytes: int
    predict_bytes: Callable[[Allocation], int]
    admits: Callable[[Allocation], bool] = lambda allocation: True

    def fits(self, allocation: Allocation) -> bool:
        return self.admits(allocation) and self.predict_bytes(allocation) <= self.budget_bytes


class Headroom:
    """The limit on predicted bytes: the budget, until a trial that was predicted to fit runs out of memory or measures
    above the budget, or a uniform baseline measures above its prediction.

    The device's allocator then needs more than the memory model allows it; the difference is left alone for the rest of
    the run, of which ``warn`` tells people.
    """

    def __init__(self, rules: BaselineRules, warn: Callable[[str], None]) -> None:
        self.rules, self._budget, self._warn = rules, rules.budget_bytes, warn

    def lower(self, trial: Trial, *, calibrates: bool = False) -> bool:
        """Lower the limit where ``trial`` shows that it is too high; return whether it did.

        One that ran out of memory lowers it below its own prediction. One that measured above the budget lowers it by
        its excess over its prediction; with ``calibrates`` one that measured above its prediction does too.
        """
        predicted, measured = trial.predicted_bytes, trial.result.measured_bytes
        if trial.result.state is TrialState.OOM:
            limit, what = predicted - 1, "ran out of memory"
        elif measured is not None and measured > (predicted if calibrates else self._budget):
            limit, what = self._budget - (measured - predicted), f"measured {measured:,} bytes"
        else:
            return False
        if limit >= self.rules.budget_bytes or predicted > self._budget:
            return False
        self.rules = replace(self.rules, budget_bytes=limit)
        self._warn(f"{trial.allocation.fingerprint} {what} although {predicted:,} bytes were predicted, within the "
                   f"budget of {self._budget:,}: the allowance grows by {self._budget - limit:,} bytes, so that what "
                   f"needs more than {limit:,} is not tried")
        return True


@dataclass(frozen=True)
class Setting:
    """What a configuration comes to, whatever its budget.

    Args:
        memory: The memory model, of the device that trains.
        given: Allocations that are trained without a search; ``None``: the run searches.
        sequences: Sequences of ``train.length`` tokens in the training split, for the plan; ``None``: not known yet.
    """

    config: RunConfig
    space: SearchSpace
    memory: MemoryModel
    given: Given | None = None
    sequences: float | None = None

    @cached_property
    def predictor(self) -> Callable[[Allocation], int]:
        """Bytes of any allocation in the configured scope, its formats and ranks on the ladders or off them."""
        return cache(partial(allocation_bytes, self.memory, self.space))

    def costs(self, budget: int) -> CostTable:
        """Return the table that decides what fits ``budget`` bytes: memory, and ``max_average_bits`` if it is set."""
        table, limit = self.memory.table(self.space), self.config.max_average_bits
        return table if limit is None else limit_average_bits(table, self.space, budget, limit)

    def problem(self, budget: int, profile: SensitivityProfile, max_full_trials: float) -> SearchProblem:
        """Return the search problem within ``budget`` bytes and ``max_full_trials`` full-trial equivalents."""
        return SearchProblem(self.space, self.costs(budget), budget, profile, self.config.fidelity.high,
                             self.config.fidelity.low, self.config.seed, max_full_trials,
                             step_tokens=self.config.train.step_tokens)

    def rules(self, budget: int) -> BaselineRules:
        """Return the rules of the uniform baselines within ``budget`` bytes."""
        limit = self.config.max_average_bits

        def admits(a: Allocation) -> bool:
            bits = [parse_format(f).bits for f in a.formats]
            return limit is None or average_bits(bits, self.space.unit_numel) <= limit

        return BaselineRules(self.space.n_units, tuple(f.name for f in self.space.formats), self.space.ranks[-1],
                             budget, self.predictor, admits)

    @property
    def full_trial_tokens(self) -> float:
        """Cost of one full-fidelity trial: training tokens, and one third of the evaluated ones."""
        return self.trial_tokens(self.config.fidelity.high, "validation")

    def trial_tokens(self, steps: int, split: str) -> float:
        """Return the cost of a training of ``steps`` that is judged on ``split``, likewise."""
        c = self.config
        return steps * c.train.step_tokens + c.eval.on(split) * c.train.length / 3

    @property
    def planned_cost(self) -> float:
        """Training tokens that profile, calibration, uniform baselines and search may spend."""
        return 0.0 if self.given is not None else self.config.effort.max_full_trials * self.full_trial_tokens

    @property
    def tries_rates(self) -> bool:
        """Whether learning rates are tried before a given allocation is trained: where nothing states one, and trials
        at low fidelity cost little beside the final fine-tune."""
        c, given = self.config, self.given
        if given is None or given.rate_source != BY_RULE or not c.oracle.trains or len(c.calibrate.lr_scales) == 1:
            return False
        steps = c.final.length(self.sequences or 0.0, c.train.step_sequences)
        return len(c.calibrate.lr_scales) * (c.fidelity.low or c.fidelity.high) <= TRIES_SHARE * steps

    @property
    def train_seed(self) -> int:
        """Training seed of all trials of the search."""
        return training_seeds(self.config.seed, 0)[0]

    @property
    def confirm_seeds(self) -> tuple[int, ...]:
        """Unseen training seeds of the confirmation."""
        return training_seeds(self.config.seed, self.config.confirm.seeds)[1]

    @property
    def code_tokens(self) -> int:
        """Tokens that go forward for the choice of codes."""
        c = self.config
        return c.train.length * gptq_sequences(c, self.memory.spec) if c.oracle.trains else 0


def training_seeds(seed: int, n: int) -> tuple[int, tuple[int, ...]]:
    """Return the training seed of a search with ``seed``, and ``n`` others that it does not use; all different.

    They are below 2**31 and the same in every process; a larger ``n`` only appends seeds.
    """
    words = np.random.SeedSequence(entropy=seed, spawn_key=(0x7A11,)).generate_state(4 * (n + 2))
    first, *others = dict.fromkeys(int(word) % 2**31 for word in words)
    return first, tuple(others[:n])
