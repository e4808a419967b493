"""The state of a run, folded from its journal: trials, incumbent, front and cost."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from qra_bo.oracle.protocol import FINETUNE
from qra_bo.space import Allocation
from qra_bo.study.cost import UNSEARCHED_STAGES, Cost, cost_of
from qra_bo.trials import Fidelity, Trial, TrialState
from qra_bo.utils.errors import JournalError, SpaceError

CONCLUSIONS = ("surrogate_check", "confirmation", "rate_check", "ranking_check", "final", "end")
"""Events that another trial of the search makes outdated: a run that was extended concludes again."""


def is_uniform(allocation: Allocation) -> bool:
    """Whether every unit has the same format and rank."""
    return len(set(allocation.formats)) == 1 and len(set(allocation.ranks)) == 1


class Study:
    """The state of a run after the events of its journal; ``add`` folds in one more.

    ``cost`` counts everything: profile, calibration, uniform baselines, search, failures, references, confirmation and
    the checks after it. ``search_cost`` is the part that the effort limits: the same up to the end of the search, less
    the references.

    Args:
        events: Events in journal order; the first is the header.
    """

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self.header: Mapping[str, Any] = {}
        self.trials: list[Trial] = []
        self.last: dict[str, Mapping[str, Any]] = {}
        self.measured: list[Mapping[str, Any]] = []
        self.overhead_seconds = 0.0
        self.evaluation_seconds = 0.0
        self._by_key: dict[str, Trial] = {}
        self._states: Counter[TrialState] = Counter()
        self._points: list[Trial] = []
        self._incumbent: Trial | None = None
        self._lr_scale: float | None = None
        self.cost = Cost()
        self.search_cost = Cost()
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
                self.header = event
            elif kind == "trial":
                self._add_trial(Trial.from_json(event))
                self.overhead_seconds += float(event.get("overhead_seconds", 0.0))
            elif kind == "profile":
                self._spend(Cost(int(event["training_tokens"]), int(event["forward_tokens"])), True)
            elif kind == "calibration":
                self._lr_scale = float(event["lr_scale"])
                self._points, self._incumbent = [], None
                for e in self.trials:
                    self._add_point(e)
            elif kind == "measured":
                self.measured.append(event)
        except (KeyError, TypeError, ValueError, SpaceError) as error:
            raise JournalError(f"the {kind} event in the journal is malformed: {error!r}; it was not written by this "
                               "program") from error

    def _add_trial(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._by_key.setdefault(trial.spec.key, trial)
        for_search = trial.stage not in UNSEARCHED_STAGES
        self._spend(cost_of(trial), for_search)
        for outdated in CONCLUSIONS if for_search else ():
            self.last.pop(outdated, None)
        self.evaluation_seconds += trial.result.seconds
        self._states[trial.result.state] += 1
        self._add_point(trial)

    def _add_point(self, trial: Trial) -> None:
        """Keep a trial that may be incumbent; one of the calibration counts as a baseline."""
        spec = trial.spec
        if (trial.ok and trial.fidelity is Fidelity.HIGH and trial.predicted_bytes <= self.budget_bytes
                and trial.stage not in UNSEARCHED_STAGES and spec.split == "validation"
                and spec.lr_scale == self._lr_scale and spec.steps == self.header["high_steps"]
                and spec.train_seed == self.header["train_seed"]):
            point = replace(trial, stage="baseline") if trial.stage == "calibration" else trial
            self._points.append(point)
            if self._incumbent is None or loss_of(point) < loss_of(self._incumbent):
                self._incumbent = point

    def _spend(self, cost: Cost, for_search: bool) -> None:
        self.cost += cost
        if for_search:
            self.search_cost += cost

    def find(self, key: str) -> Trial | None:
        """Return the trial whose specification has this key."""
        return self._by_key.get(key)

    @property
    def budget_bytes(self) -> int:
        return int(self.header["budget_bytes"])

    @property
    def lr_scale(self) -> float | None:
        """The calibrated factor on the base learning rate; ``None`` before the calibration has ended."""
        return self._lr_scale

    @property
    def trains(self) -> bool:
        """Whether the run's oracle really fine-tunes a model."""
        return bool(self.header["oracle"] == FINETUNE)

    @property
    def points(self) -> tuple[Trial, ...]:
        """Finished full-fidelity trials that may be incumbent: within the budget, on the validation split, at the
        search's training seed and learning rate; calibrated uniform baselines count as baselines."""
        return tuple(self._points)

    @property
    def incumbent(self) -> Trial | None:
        """The point with the least loss (of equals the earliest)."""
        return self._incumbent

    @property
    def best_uniform(self) -> Trial | None:
        """The best uniform baseline, or the best uniform allocation that a searcher found if that is better."""
        return min((e for e in self.points if self.counts_as_uniform(e)), key=loss_of, default=None)

    @property
    def best_mixed(self) -> Trial | None:
        """The best point whose allocation is not uniform."""
        return min((e for e in self.points if not self.counts_as_uniform(e)), key=loss_of, default=None)

    @staticmethod
    def counts_as_uniform(e: Trial) -> bool:
        """Whether a trial is a baseline (uniform + filled ranks too) or has one format and rank throughout."""
        return e.stage == "baseline" or is_uniform(e.allocation)

    @property
    def baselines(self) -> list[Trial]:
        """Finished uniform baselines in the order of their trials, then references."""
        references = [e for e in self.trials if e.stage == "reference" and e.ok]
        return [e for e in self.points if e.stage == "baseline"] + references

    @property
    def front(self) -> list[Trial]:
        """Points that no other point beats in both predicted bytes and loss, by increasing bytes."""
        front: list[Trial] = []
        for e in sorted(self.points, key=lambda e: (e.predicted_bytes, loss_of(e), e.id)):
            if not front or loss_of(e) < loss_of(front[-1]):
                front.append(e)
        return front

    @property
    def ranked(self) -> list[Trial]:
        """Points by increasing loss."""
        return sorted(self.points, key=lambda e: (loss_of(e), e.id))

    @property
    def states(self) -> dict[str, int]:
        """Number of trials that ended in each state."""
        return {state.value: self._states[state] for state in TrialState}

    @property
    def winner(self) -> Allocation | None:
        """The allocation that the run delivers: of the end event, else of the confirmation, else the incumbent."""
        named = self.last.get("end", {}).get("best")
        if named is not None:
            for e in self.trials:
                if e.allocation.fingerprint == named:
                    return e.allocation
            raise JournalError(f"the journal's end names {named} as the best, which was never evaluated")
        confirmation = self.last.get("confirmation")
        if confirmation is not None:
            return Allocation.from_json(confirmation["candidate" if confirmation["winner_kind"] == "mixed"
                                                     else "reference"])
        return None if self.incumbent is None else self.incumbent.allocation

    def point(self, allocation: Allocation) -> Trial | None:
        """Return the search's own trial of ``allocation``."""
        return next((e for e in self.points if e.allocation == allocation), None)


def loss_of(e: Trial) -> float:
    """Return the loss; infinite where there is none."""
    return float("inf") if e.loss is None else e.loss


def as_observation(e: Trial) -> Trial:
    """Return a trial of the search as a searcher is told of it: the calibrated learning rate is the unit of
    ``lr_scale``."""
    return replace(e, spec=replace(e.spec, lr_scale=1.0))
