"""The state of a run, folded from its journal: trials, incumbent, cost, and the last event of each kind."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qra_bo.execution.base import ProfileResult
from qra_bo.memory.formats import parse_format
from qra_bo.space import Allocation
from qra_bo.study import events as ev
from qra_bo.study.cost import Cost, affordable_steps, cost_of
from qra_bo.study.header import Effort, Header
from qra_bo.trials import Fidelity, Trial, TrialState
from qra_bo.utils.errors import JournalError

COMPARISON = "comparison"
"""Stage of trials beside a predicted allocation (``study.prediction``)."""
UNTUNED = "untuned"
"""Stage in which the model is evaluated before any training."""
UNIFORM, FRACTIONAL = "uniform", "fractional"
"""Kinds of simple choices."""
UNSEARCHED_STAGES = frozenset({"reference", "confirmation", COMPARISON})
"""Stages that count in a run's cost and not against its effort."""
ENGINE_STAGES = frozenset({"calibration", "baseline", *UNSEARCHED_STAGES})
"""Stages of trials that the engine plans; all other stages are a searcher's."""
CONCLUSIONS = ("prediction", "surrogate_check", "choice", "confirmation", "final", "end")
"""Events that another trial of the search makes outdated: a run that was extended concludes again."""


def loss_of(e: Trial) -> float:
    """Return the loss; infinite where there is none."""
    return float("inf") if e.loss is None else e.loss


def is_uniform(allocation: Allocation) -> bool:
    """Whether every unit has the same format and rank."""
    return len(set(allocation.formats)) == 1 and len(set(allocation.ranks)) == 1


class Study:
    """The state of a run after the events of its journal; ``add`` folds in one more.

    The last record of each annotated kind that is not outdated is an attribute with its name; ``None`` before one.

    Attributes:
        effort: The effort that the run was last started with.
        begun: The effort that the search was begun with: proposals are repeated with it. That of the header, or where
            that began without trials (``effort=instant``), of the extension that searches; ``None`` before it.
        by_key: The first trial of every specification, by its key.
        points: Finished full-fidelity trials that may be incumbent: within the budget as predicted and as measured, on
            the validation split, at the search's seed and rate; calibrated uniform baselines count as baselines.
        cost: All of it, failures, references, confirmation included.
        search_cost: The part that the effort limits: up to the end of the search, less the references.
        measurements: Measured memory of candidate winners, in order.
        workers: Trials that were kept under way when the last one ended.
    """

    profile: ProfileResult | None = None
    calibration: ev.Calibration | None = None
    untuned: ev.Untuned | None = None
    objective: ev.Objective | None = None
    prediction: ev.Prediction | None = None
    stopped: ev.Stopped | None = None
    surrogate_check: ev.SurrogateCheck | None = None
    choice: ev.Choice | None = None
    confirmation: ev.Confirmation | None = None
    final: ev.Final | None = None
    end: ev.End | None = None
    stage: ev.Stage | None = None

    def __init__(self) -> None:
        self._header: Header | None = None
        self.effort: Effort | None = None
        self.begun: Effort | None = None
        self.provenance: Mapping[str, Any] = {}
        self.warnings: list[str] = []
        self.trials: list[Trial] = []
        self.measurements: list[ev.Measured] = []
        self.overhead_seconds = self.evaluation_seconds = self._trial_tokens = 0.0
        self.workers = 1
        self.points: list[Trial] = []
        self.cost = self.search_cost = Cost()
        self.by_key: dict[str, Trial] = {}

    def add(self, event: ev.Event) -> None:
        """Fold in one event."""
        record = event.record
        if event.kind in Study.__annotations__:
            setattr(self, event.kind, record)
        match record:
            case Effort():  # a header too
                self._header = record if isinstance(record, Header) else self._header
                self.effort = record
                if self.begun is None and record.max_full_trials > 0:
                    self.begun = record
            case ev.Provenance():
                self.provenance = record.facts
            case ev.Warned():
                self.warnings.append(record.message)
            case ev.Measured():
                self.measurements.append(record)
            case ev.FinishedTrial():
                self._add_trial(record)
            case ProfileResult():
                self._spend(Cost(record.training_tokens, record.forward_tokens), True)
            case ev.Untuned():
                self._spend(Cost(0, record.forward_tokens), False)
            case ev.Calibration():
                self.points = []
                for e in self.trials:
                    self._add_point(e)
            case ev.Confirmation():  # an earlier one led to an end, and a final fine-tune of another winner
                self.end = None
                if self.final is not None and (self.winner is None or self.final.winner != self.winner.fingerprint):
                    self.final = None
            case ev.Final():  # of another allocation than the end delivered: that did not fit any more
                if self.end is not None and self.end.best != record.delivered:
                    self.end = None

    @property
    def header(self) -> Header:
        """The first event; raises ``JournalError`` before it."""
        if self._header is None:
            raise JournalError("the journal has no header event: it is not the trials.jsonl of a run, or it is empty")
        return self._header

    @property
    def given(self) -> tuple[Allocation, ...]:
        """Allocations that the run trains without a search, in the order of preference; empty for a search."""
        return () if self.header.given is None else self.header.given.allocations

    @property
    def learning_rate(self) -> float | None:
        """The rate of the run's trials, as in ``TrialSpec``; ``None`` before the calibration has ended."""
        return None if self.calibration is None else self.calibration.learning_rate

    @property
    def objective_steps(self) -> int:
        """Optimiser steps of the training whose loss the run minimises."""
        return self.header.high_steps if self.objective is None else self.objective.steps

    @property
    def final_steps(self) -> int:
        """Optimiser steps that the final fine-tune planned; those of a trial where there was none."""
        return self.header.high_steps if self.final is None else self.final.planned_steps

    @property
    def eta_seconds(self) -> float | None:
        """Time for the rest of the planned search, at the seconds of a training token in the trials so far, ``workers``
        of them at once; ``None`` before the first, or where nothing is searched."""
        left = max(0.0, self.planned_cost - self.search_cost.tokens)
        return left * self.evaluation_seconds / (self._trial_tokens * self.workers) \
            if self.planned_cost and self._trial_tokens else None

    @property
    def planned_cost(self) -> float:
        """Training tokens that the run may spend up to the end of its search, by its latest effort."""
        return 0.0 if self.effort is None else self.effort.planned_cost

    @property
    def confirmation_steps(self) -> int:
        """Optimiser steps of the confirmation's trainings: those minimised for, where the effort affords them."""
        trial, config = self.header.high_steps, self.header.config
        if self.objective_steps <= trial:
            return trial
        train = config["train"]
        step_tokens = int(train["batch"]) * int(train["accumulate"]) * int(train["length"])
        return affordable_steps(self.planned_cost, int(config["confirm"]["seeds"]), step_tokens, trial,
                                self.objective_steps)

    def value(self, e: Trial) -> float:
        """Return the loss that a trial predicts for the length that is minimised, but for a constant."""
        return loss_of(e) + (0.0 if self.objective is None else self.objective.change.of(e.allocation))

    def observation(self, e: Trial) -> Trial:
        """Return a trial as a searcher is told of it: with ``value`` for its loss."""
        return e if e.loss is None else replace(e, result=replace(e.result, loss=self.value(e)))

    def _add_trial(self, finished: ev.FinishedTrial) -> None:
        trial = finished.trial
        self.workers = finished.workers
        self.overhead_seconds += finished.overhead_seconds
        self.trials.append(trial)
        self.by_key.setdefault(trial.spec.key, trial)
        for_search = trial.stage not in UNSEARCHED_STAGES
        self._spend(cost_of(trial), for_search)
        for outdated in CONCLUSIONS if for_search else ():
            setattr(self, outdated, None)
        self.evaluation_seconds += trial.result.seconds
        self._trial_tokens += cost_of(trial).tokens
        self._add_point(trial)

    def _add_point(self, trial: Trial) -> None:
        """Keep a trial that may be incumbent; one of the calibration counts as a baseline."""
        spec, header = trial.spec, self.header
        if (trial.ok and trial.fidelity is Fidelity.HIGH and trial.within(header.budget_bytes)
                and trial.stage not in UNSEARCHED_STAGES and spec.split == "validation"
                and spec.learning_rate == self.learning_rate and spec.steps == header.high_steps
                and spec.train_seed == header.train_seed):
            self.points.append(replace(trial, stage="baseline") if trial.stage == "calibration" else trial)

    def _spend(self, cost: Cost, for_search: bool) -> None:
        self.cost += cost
        if for_search:
            self.search_cost += cost

    def admits(self, bits: Sequence[int]) -> bool:
        """Whether the average of every unit's code bits keeps to ``max_average_bits``, where that limits it."""
        limit = self.header.max_average_bits
        return limit is None or self.header.average_bits(bits) <= limit

    @property
    def untried(self) -> tuple[Allocation, ...]:
        """Allocations that are delivered without a trial, in the order of preference: given or predicted ones."""
        return self.given or (() if self.prediction is None else self.prediction.allocations)

    @property
    def calibrated(self) -> bool:
        """Whether the learning rate was chosen in this run, and not given or predicted."""
        return self.calibration is not None and self.calibration.source is None

    @property
    def incumbent(self) -> Trial | None:
        """The point with the least ``value`` (of equals the earliest)."""
        return min(self.points, key=self.value, default=None)

    @property
    def best_uniform(self) -> Trial | None:
        """The best point whose allocation is uniform."""
        return next((e for e in self.ranked if is_uniform(e.allocation)), None)

    @property
    def best_simple(self) -> Trial | None:
        """The best simple choice: of the baselines, uniform or fractional, and of uniform allocations."""
        return next(filter(self.is_simple, self.ranked), None)

    @property
    def best_mixed(self) -> Trial | None:
        """The best point that is no simple choice."""
        return next((e for e in self.ranked if not self.is_simple(e)), None)

    @staticmethod
    def is_simple(e: Trial) -> bool:
        """Whether a trial is of a simple choice: a baseline, or uniform."""
        return e.stage == "baseline" or is_uniform(e.allocation)

    def kind_of(self, allocation: Allocation) -> str:
        """Return ``UNIFORM``, ``FRACTIONAL`` (a simple choice of two formats) or ``"mixed"``."""
        given = self.header.given
        by_rule = (given is not None and given.rule is not None) or any(
            e.stage == "baseline" and e.allocation == allocation for e in self.points) or (
            self.prediction is not None and allocation == self.prediction.simple)
        return UNIFORM if is_uniform(allocation) else FRACTIONAL if by_rule else "mixed"

    @property
    def baselines(self) -> list[Trial]:
        """Finished baselines in the order of their trials, then references."""
        return [e for e in self.points if e.stage == "baseline"] \
            + [e for e in self.trials if e.stage == "reference" and e.ok]

    @property
    def ranked(self) -> list[Trial]:
        """Points by increasing ``value``."""
        return sorted(self.points, key=lambda e: (self.value(e), e.id))

    @property
    def states(self) -> dict[str, int]:
        """Number of trials that ended in each state."""
        found = Counter(e.result.state for e in self.trials)
        return {state.value: found[state] for state in TrialState}

    @property
    def winner(self) -> Allocation | None:
        """The allocation that the run delivers: of the end event, else of the confirmation, else the incumbent, or the
        first that was given or predicted.

        ``None`` before the first point. Raises ``JournalError`` if the end event names an allocation without a trial.
        """
        if self.end is None:
            return self.chosen or (None if self.incumbent is None else self.incumbent.allocation)
        for allocation in (*self.untried, *(e.allocation for e in self.trials)):
            if allocation.fingerprint == self.end.best:
                return allocation
        raise JournalError(f"the end of the journal names {self.end.best}, which was neither evaluated nor given")

    @property
    def chosen(self) -> Allocation | None:
        """The allocation that was given, predicted or confirmed to be the best; ``None`` before."""
        if self.untried or self.confirmation is None:
            return next(iter(self.untried), None)
        return self.confirmation.winner

    def point(self, allocation: Allocation) -> Trial | None:
        """Return the search's own trial of ``allocation``."""
        return next((e for e in self.points if e.allocation == allocation), None)

    def measurement(self, allocation: Allocation) -> ev.Measured | None:
        """Return the last measurement of an allocation's memory before a final fine-tune."""
        return next((m for m in reversed(self.measurements) if m.allocation == allocation), None)

    def name(self, allocation: Allocation, codes: str | None = None) -> str:
        """Return a name that no other allocation of the run has.

        ``uniform-4bit-r16``, ``mix-3.80bit-r2``, else ``mixed-3fa9c1``. The format of a uniform choice is named where
        several have these bits, and codes other than the run's.
        """
        kind, fmt, rank = self.kind_of(allocation), allocation.formats[0], allocation.ranks[0]
        bits = [parse_format(f).bits for f in allocation.formats]
        if kind == FRACTIONAL:
            name = f"mix-{self.header.average_bits(bits):.2f}bit-r{rank}"
        elif kind == UNIFORM:
            same = {f.name for f in self.header.formats if f.bits == bits[0]} | {fmt}
            name = "-".join([f"uniform-{bits[0]}bit", *([fmt] if len(same) > 1 else []), f"r{rank}"])
        else:
            name = f"mixed-{allocation.fingerprint[:6]}"
        return name if codes is None else f"{name}-{codes}"
