"""What a run is told: its limits, seeds and schedule, and the callables that connect it to models and methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.execution.base import Executor
from qra_bo.oracle.protocol import Progress
from qra_bo.searchers.base import Searcher, SearchProblem
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, SearchSpace
from qra_bo.trials import Trial
from qra_bo.utils.errors import ConfigError

OTHER_RATES = "distinct positive factors other than 1, e.g. [0.5,2]"


def are_other_rates(factors: Sequence[float]) -> bool:
    """Whether ``factors`` on a calibrated learning rate are ``OTHER_RATES``."""
    return all(f > 0 and f != 1 for f in factors) and len(set(factors)) == len(factors)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One run.

    Args:
        folder: The run's folder; made if it is absent.
        config: The whole configuration, JSON values; stored in the journal's header.
        config_sha256: Hash over the part of ``config`` that defines results.
        may_differ: Top-level keys of ``config`` that the hash leaves out.
        model: Name of the model.
        granularity: Of the units.
        oracle: ``"finetune"``, ``"benchmark"`` or ``"synthetic"``.
        method: Name of the search method.
        scope: ``"peak"`` or ``"stored"``.
        budget_bytes: Hard limit on predicted bytes.
        budget_text: The budget as the user wrote it.
        effort: Name of the effort.
        max_full_trials: High-fidelity equivalents that profile, calibration, uniform baselines and search may spend.
        full_trial_tokens: Cost of one high-fidelity evaluation in training tokens.
        high_steps: Optimiser steps of a high-fidelity evaluation.
        low_steps: Of a low-fidelity one, or ``None`` where there is none.
        seed: Drives the search.
        train_seed: Training seed of all candidates.
        confirm_seeds: Unseen training seeds of the confirmation; none to skip it, else at least 2.
        uniform baselines: Uniform uniform baselines that are evaluated, the most promising; ``None`` for all.
        max_rank: Largest rank that every matrix allows.
        base_lr: Learning rate that ``lr_scales`` multiply.
        lr_rule: Name of the rule in the rank, for the record.
        lr_scales: Factors tried by the calibration; a single one is taken untried.
        calibration_baselines: Uniform choices, in the format of the most promising uniform baseline, on which each factor is
            tried.
        alpha_over_rank: For the record.
        init: Adapter initialisation, for the record.
        references: Uniform choices to report beside the uniform baselines, e.g. LoRA-16 and QLoRA; they need not fit.
        rtn_references: The same with the codes of the formats' libraries, where the search's are others.
        ranking_top: Best allocations whose ranking is checked at a longer training; fewer than 2 to skip it.
        ranking_factor: How many times longer.
        rate_factors: Factors on the calibrated learning rate at which the confirmation is repeated.
        max_hours: End the search after this long, or ``None``.
        allowance: Of the device's allocator, measured on it, with which bytes are predicted; ``None``: assumed.
        max_average_bits: Limit on code bits averaged over parameters beside the budget, or ``None``.
        prior_sha256: Hash of the file of what earlier runs taught the surrogate (``config`` has its path), or ``None``.

    Raises:
        ConfigError: With all problems at once.
    """

    folder: Path
    config: Mapping[str, Any]
    config_sha256: str
    model: str
    granularity: str
    oracle: str
    method: str
    scope: str
    budget_bytes: int
    budget_text: str
    effort: str
    max_full_trials: float
    full_trial_tokens: float
    high_steps: int
    low_steps: int | None
    seed: int
    train_seed: int
    confirm_seeds: tuple[int, ...]
    uniform_baselines: int | None
    max_rank: int
    base_lr: float
    lr_rule: str
    lr_scales: tuple[float, ...]
    alpha_over_rank: float
    init: str
    may_differ: frozenset[str] = frozenset()
    calibration_baselines: int = 1
    references: tuple[Allocation, ...] = ()
    rtn_references: tuple[Allocation, ...] = ()
    ranking_top: int = 0
    ranking_factor: int = 4
    rate_factors: tuple[float, ...] = ()
    max_hours: float | None = None
    allowance: Mapping[str, Any] | None = None
    max_average_bits: float | None = None
    prior_sha256: str | None = None

    def __post_init__(self) -> None:
        problems = []
        positive = {"the effort's full-trial equivalents": self.max_full_trials,
                    "the tokens of a high-fidelity evaluation": self.full_trial_tokens,
                    "fidelity.high": self.high_steps, "the largest rank": self.max_rank,
                    "the number of calibrated uniform baselines": self.calibration_baselines,
                    "the learning rate": self.base_lr, "the factor of the ranking check": self.ranking_factor}
        problems += [f"{what} must be positive, got {value}" for what, value in positive.items() if not value > 0]
        if self.low_steps is not None and not 0 < self.low_steps < self.high_steps:
            problems.append(f"fidelity.low must lie between 0 and fidelity.high = {self.high_steps}, "
                            f"got {self.low_steps}")
        if not self.lr_scales or min(self.lr_scales) <= 0 or len(set(self.lr_scales)) < len(self.lr_scales):
            problems.append("calibrate.lr_scales must be distinct positive factors, e.g. [0.5,1,2], "
                            f"got {list(self.lr_scales)}")
        if len(self.confirm_seeds) == 1:
            problems.append("confirm.seeds must be 0 (no confirmation) or at least 2, got 1")
        seeds = (self.train_seed, *self.confirm_seeds)
        if len(set(seeds)) < len(seeds):
            problems.append("the training seeds of search and confirmation must all differ, got "
                            f"{self.train_seed} and {list(self.confirm_seeds)}")
        if self.uniform_baselines is not None and self.uniform_baselines < 1:
            problems.append(f"effort.uniform_baselines must be at least 1, or null for all, got {self.uniform_baselines}")
        if not are_other_rates(self.rate_factors):
            problems.append(f"effort.rate_factors must be {OTHER_RATES}, got {list(self.rate_factors)}")
        if self.max_hours is not None and not self.max_hours > 0:
            problems.append(f"max_hours must be positive or null, got {self.max_hours}")
        if problems:
            raise ConfigError(problems)

    @property
    def planned_cost(self) -> float:
        """What the effort may spend, in training tokens."""
        return self.max_full_trials * self.full_trial_tokens


def training_seeds(seed: int, n: int) -> tuple[int, tuple[int, ...]]:
    """The training seed of a search with ``seed``, and ``n`` others that it does not use; all different."""
    words = np.random.SeedSequence(entropy=seed, spawn_key=(0x7A11,)).generate_state(4 * (n + 2))
    first, *others = dict.fromkeys(int(word) % 2**31 for word in words)
    return first, tuple(others[:n])


@dataclass(frozen=True, slots=True)
class FinalTask:
    """What the final fine-tune gets.

    Args:
        ranked: The winner, then the next best that are predicted to fit.
        lr_scale: Calibrated factor on the base learning rate.
        executor: Still open; closing it frees the search's model.
        record: Writes a journal event: ``"measured"`` for every allocation that was measured, ``"warning"``.
        progress: For people.
    """

    ranked: tuple[Allocation, ...]
    lr_scale: float
    executor: Executor
    record: Callable[[str, Mapping[str, Any]], None]
    progress: Progress


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the final fine-tune left behind.

    Args:
        allocation: The first of ``ranked`` that measured within the budget.
        steps: Optimiser steps of the final fine-tune.
        loss: Its held-out loss, or ``None`` where it was not evaluated.
        loss_se: Standard error of ``loss``.
        adapter: Folder of the adapter, relative to the run's.
    """

    allocation: Allocation
    steps: int
    loss: float | None
    loss_se: float | None
    adapter: str | None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is connected to.

    Args:
        space: Units and ladders.
        predict_bytes: Bytes of any allocation in the budget's scope, off the ladders too.
        breakdown: The same by its parts.
        executor: Runs the oracle; the engine closes it.
        make_problem: The search problem, once the profile is there.
        make_searcher: A searcher for the problem, told how many full-trial equivalents the run was started with.
        finalise: Final fine-tune and export, or ``None`` to end with the search.
        is_kept: Whether what it wrote is still there: if not, it is done again.
        fold: Folds measured peaks of evaluations into what is known of the device, and says what that came to, if to
            anything; or ``None``.
        progress: ``(what, done, total)`` for people.
        listeners: Each gets every journal event, those of earlier sessions first.
    """

    space: SearchSpace
    predict_bytes: Callable[[Allocation], int]
    breakdown: Callable[[Allocation], Mapping[str, int]]
    executor: Executor
    make_problem: Callable[[SensitivityProfile], SearchProblem]
    make_searcher: Callable[[SearchProblem, float], Searcher]
    finalise: Callable[[FinalTask], Delivery] | None = None
    is_kept: Callable[[], bool] = lambda: True
    fold: Callable[[Sequence[Trial]], Mapping[str, Any] | None] | None = None
    progress: Progress = lambda what, done, total: None
    listeners: Sequence[Callable[[Mapping[str, Any]], None]] = ()
