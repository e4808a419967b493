"""The state of a run, folded from its journal: trials, incumbent, cost."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qra_bo.oracle.protocol import FINETUNE
from qra_bo.sensitivity.change import Change
from qra_bo.space import Allocation, average_bits
from qra_bo.study.given import given_allocations
from qra_bo.study.setting import affordable_steps
from qra_bo.trials import Fidelity, Trial, TrialState
from qra_bo.utils.errors import JournalError, SpaceError

FORWARD_SHARE = 1 / 3
"""Cost of a forward-only token in training tokens."""
COMPARISON = "comparison"
"""Stage of trials beside a predicted allocation (``study.comparison``)."""
UNSEARCHED_STAGES = frozenset({"reference", "repeat", "confirmation", "rate_check", "ranking_check", COMPARISON})
"""Stages that count in a run's cost and not against its effort."""
CONCLUSIONS = ("prediction", "surrogate_check", "choice", "confirmation", "rate_check", "ranking_check", "final",
               "end")
"""Events that another trial of the search makes outdated: a run that was extended concludes again."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens and trials spent, failures included.

    Args:
        training_tokens: Tokens that went forward and backward.
        forward_tokens: Tokens that went forward only; each costs ``FORWARD_SHARE`` of a training token.
        high_fidelity: Trials at full fidelity or longer.
        low_fidelity: Trials at low fidelity.
    """

    training_tokens: int = 0
    forward_tokens: int = 0
    high_fidelity: int = 0
    low_fidelity: int = 0

    @property
    def tokens(self) -> float:
        """The whole cost in training tokens."""
        return self.training_tokens + FORWARD_SHARE * self.forward_tokens

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.training_tokens + other.training_tokens, self.forward_tokens + other.forward_tokens,
                    self.high_fidelity + other.high_fidelity, self.low_fidelity + other.low_fidelity)


def cost_of(trial: Trial) -> Cost:
    """Return the cost of one trial; a promotion pays only the steps it added."""
    low = trial.fidelity is Fidelity.LOW
    return Cost(trial.result.training_tokens, trial.result.forward_tokens, int(not low), int(low))


def loss_of(e: Trial) -> float:
    """Return the loss; infinite where there is none."""
    return float("inf") if e.loss is None else e.loss


def _workers(event: Mapping[str, Any]) -> int:
    workers = event.get("workers", 1)
    if type(workers) is not int or workers < 1:
        raise ValueError(f"it was made by {workers!r} workers")
    return int(workers)


def is_uniform(allocation: Allocation) -> bool:
    """Whether every unit has the same format and rank."""
    return len(set(allocation.formats)) == 1 and len(set(allocation.ranks)) == 1


class Study:
    """The state of a run after the events of its journal; ``add`` folds in one more.

    Args:
        events: Events in journal order; the first is the header.

    Attributes:
        given: Allocations that the run trains without a search, in the order of preference; empty for a search.
        begun: The header, or where that began without trials (``effort=instant``), the extension that searches; empty
            before it. A search repeats its proposals with the effort that it was begun with.
        last: The last event of each kind that is not outdated.
        by_key: The first trial of every specification, by its key.
        points: Finished full-fidelity trials that may be incumbent: within the budget as predicted and as measured, on
            the validation split, at the search's training seed and learning rate; calibrated uniform baselines count as
            baselines.
        incumbent: The point with the least ``value`` (of equals the earliest).
        change: What carries a trial's loss to the length that the run minimises; ``None`` where that is a trial's.
        learning_rate: The calibrated one, as in ``TrialSpec``; ``None`` before the calibration has ended.
        cost: All of it: profile, calibration, uniform baselines, search, failures, references, confirmation and checks.
        search_cost: The part that the effort limits: up to the end of the search, less the references.
        workers: Trials that were kept under way when the last one ended.
    """

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self.header: Mapping[str, Any] = {}
        self.given: tuple[Allocation, ...] = ()
        self.begun: Mapping[str, Any] = {}
        self.trials: list[Trial] = []
        self.last: dict[str, Mapping[str, Any]] = {}
        self.measured: list[Mapping[str, Any]] = []
        self.overhead_seconds = self.evaluation_seconds = self._trial_tokens = 0.0
        self.workers = 1
        self.points: list[Trial] = []
        self.incumbent: Trial | None = None
        self.change: Change | None = None
        self.learning_rate: float | None = None
        self.cost = self.search_cost = Cost()
        self.by_key: dict[str, Trial] = {}
        for event in events:
            self.add(event)

    def add(self, event: Mapping[str, Any]) -> None:
        """Fold in one event.

        Raises:
            JournalError: If it is malformed.
        """
        kind = event["event"]
        try:
            self.last[kind] = event
            if kind == "header":
                self.header, self.given = event, given_allocations(event)
                self._begin(event)
            elif kind == "extension":
                self._begin(event)
            elif kind == "trial":
                self._add_trial(Trial.from_json(event))
                self.workers = _workers(event)
                self.overhead_seconds += float(event.get("overhead_seconds", 0.0))
            elif kind == "profile":
                self._spend(Cost(int(event["training_tokens"]), int(event["forward_tokens"])), True)
            elif kind == "untuned":
                self._spend(Cost(0, int(event["forward_tokens"])), False)
            elif kind == "calibration":
                self.learning_rate = float(event["learning_rate"])
                self.points, self.incumbent = [], None
                for e in self.trials:
                    self._add_point(e)
            elif kind == "confirmation":
                self._confirm()
            elif kind == "objective":
                self.change = Change.from_json(event["change"])
                self.incumbent = min(self.points, key=self.value, default=None)  # its line may follow its points
            elif kind == "final":
                if self.last.get("end", {}).get("best") != event.get("delivered"):
                    self.last.pop("end", None)  # trained again, of another allocation: the former did not fit any more
            elif kind == "measured":
                self.measured.append(event)
        except (KeyError, TypeError, ValueError, SpaceError) as error:
            raise JournalError(f"the {kind} event in the journal is malformed: {error!r}; it was not written by this "
                               "program") from error

    @property
    def objective_steps(self) -> int:
        """Optimiser steps of the training whose loss the run minimises."""
        return int(self.last.get("objective", {"steps": self.header["high_steps"]})["steps"])

    @property
    def final_steps(self) -> int:
        """Optimiser steps that the final fine-tune planned; those of a trial where there was none."""
        return int(self.last.get("final", {}).get("planned_steps", self.header["high_steps"]))

    @property
    def pace(self) -> float | None:
        """Seconds of a training token in the trials so far, ``workers`` of them at once; ``None`` before the first."""
        return self.evaluation_seconds / (self._trial_tokens * self.workers) if self._trial_tokens else None

    @property
    def planned_cost(self) -> float:
        """Training tokens that profile, calibration, uniform baselines and search may spend, by the effort that the run
        was last started with."""
        return float(self.last.get("extension", self.header).get("planned_cost", 0.0))

    @property
    def confirmation_steps(self) -> int:
        """Optimiser steps of the confirmation's trainings: of the length that is minimised, where the effort affords
        it (``affordable_steps``)."""
        trial = int(self.header["high_steps"])
        if self.objective_steps <= trial:
            return trial
        config = self.header["config"]
        train = config["train"]
        step_tokens = int(train["batch"]) * int(train["accumulate"]) * int(train["length"])
        return affordable_steps(self.planned_cost, int(config["confirm"]["seeds"]), step_tokens, trial,
                                self.objective_steps)

    def carried(self, allocation: Allocation) -> float:
        """Return what is added to a trial's loss to predict that of the length that is minimised, but for a constant
        (nats)."""
        return 0.0 if self.change is None else self.change.of(allocation)

    def value(self, e: Trial) -> float:
        """Return the loss that a trial predicts for the length that is minimised, but for a constant."""
        return loss_of(e) + self.carried(e.allocation)

    def observation(self, e: Trial) -> Trial:
        """Return a trial as a searcher is told of it: with ``value`` for its loss."""
        return e if e.loss is None else replace(e, result=replace(e.result, loss=self.value(e)))

    def _begin(self, event: Mapping[str, Any]) -> None:
        if not self.begun and float(event.get("max_full_trials", 1)) > 0:
            self.begun = event

    def _confirm(self) -> None:
        """Drop what an earlier confirmation led to: its check, the end, and the final fine-tune of another winner."""
        for outdated in ("rate_check", "end"):
            self.last.pop(outdated, None)
        final, winner = self.last.get("final"), self.winner
        if final is not None and (winner is None or final.get("winner") != winner.fingerprint):
            del self.last["final"]

    def _add_trial(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.by_key.setdefault(trial.spec.key, trial)
        for_search = trial.stage not in UNSEARCHED_STAGES
        self._spend(cost_of(trial), for_search)
        for outdated in CONCLUSIONS if for_search else ():
            self.last.pop(outdated, None)
        self.evaluation_seconds += trial.result.seconds
        self._trial_tokens += cost_of(trial).tokens
        self._add_point(trial)

    def _add_point(self, trial: Trial) -> None:
        """Keep a trial that may be incumbent; one of the calibration counts as a baseline."""
        spec = trial.spec
        if (trial.ok and trial.fidelity is Fidelity.HIGH and trial.within(self.budget_bytes)
                and trial.stage not in UNSEARCHED_STAGES and spec.split == "validation"
                and spec.learning_rate == self.learning_rate and spec.steps == self.header["high_steps"]
                and spec.train_seed == self.header["train_seed"]):
            point = replace(trial, stage="baseline") if trial.stage == "calibration" else trial
            self.points.append(point)
            if self.incumbent is None or self.value(point) < self.value(self.incumbent):
                self.incumbent = point

    def _spend(self, cost: Cost, for_search: bool) -> None:
        self.cost += cost
        if for_search:
            self.search_cost += cost

    @property
    def budget_bytes(self) -> int:
        return int(self.header["budget_bytes"])

    def admits(self, bits: Sequence[int]) -> bool:
        """Whether the average of every unit's code bits keeps to ``max_average_bits``, where that limits it."""
        limit = self.header.get("max_average_bits")
        return limit is None or average_bits(bits, np.array(self.header["unit_numel"])) <= limit

    @property
    def untried(self) -> tuple[Allocation, ...]:
        """Allocations that are delivered without a trial, in the order of preference: given or predicted ones."""
        predicted = self.last.get("prediction", {}).get("allocations", ())
        return self.given or tuple(Allocation.from_json(a) for a in predicted)

    @property
    def calibrated(self) -> bool:
        """Whether the learning rate was chosen in this run, and not given or predicted."""
        return "source" not in self.last.get("calibration", {"source": None})

    @property
    def trains(self) -> bool:
        """Whether the run's oracle really fine-tunes a model."""
        return bool(self.header["oracle"] == FINETUNE)

    @property
    def best_uniform(self) -> Trial | None:
        """The best uniform baseline, or the best uniform allocation that a searcher found if that is better."""
        return min((e for e in self.points if self.counts_as_uniform(e)), key=self.value, default=None)

    @property
    def best_mixed(self) -> Trial | None:
        """The best point whose allocation is not uniform."""
        return min((e for e in self.points if not self.counts_as_uniform(e)), key=self.value, default=None)

    @staticmethod
    def counts_as_uniform(e: Trial) -> bool:
        """Whether a trial is a baseline (uniform + filled ranks too) or has one format and rank throughout."""
        return e.stage == "baseline" or is_uniform(e.allocation)

    @property
    def baselines(self) -> list[Trial]:
        """Finished uniform baselines in the order of their trials, then references."""
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
        named = self.last.get("end", {}).get("best")
        if named is not None:
            for allocation in (*self.untried, *(e.allocation for e in self.trials)):
                if allocation.fingerprint == named:
                    return allocation
            raise JournalError(f"the journal's end names {named} as the best, which was neither evaluated nor given")
        return self.chosen or (None if self.incumbent is None else self.incumbent.allocation)

    @property
    def chosen(self) -> Allocation | None:
        """The allocation that was given, predicted or confirmed to be the best; ``None`` before."""
        c = self.last.get("confirmation")
        if self.untried or c is None:
            return next(iter(self.untried), None)
        return Allocation.from_json(c["candidate" if c["winner_kind"] == "mixed" else "reference"])

    @property
    def instead(self) -> str | None:
        """What is delivered where the predicted or confirmed allocation measured over the budget: ``"reference"``, the
        best uniform baseline; ``"candidate"``, which was compared with it on unseen seeds; or ``"other"``.

        ``None`` where ``chosen`` is delivered, nothing was chosen yet, or allocations were given.
        """
        known, winner = self.last.get("prediction", self.last.get("confirmation")), self.winner
        if self.given or known is None or winner is None or winner == self.chosen:
            return None
        if winner.to_json() == known["reference"]:
            return "reference"
        return "candidate" if winner.to_json() == known.get("candidate") and known["train_seeds"] else "other"

    def point(self, allocation: Allocation) -> Trial | None:
        """Return the search's own trial of ``allocation``."""
        return next((e for e in self.points if e.allocation == allocation), None)
