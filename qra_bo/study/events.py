"""Kinds of events in a run's journal: each is one frozen record, checked once when its line is decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import StrictInt
from pydantic.dataclasses import dataclass as checked

from qra_bo.searchers.rates.model import Change
from qra_bo.space import Allocation
from qra_bo.trials import RESERVED, Stored, Trial

LEAST_AGREEMENT = 0.0
"""Spearman correlation of left-out losses, over their better half, above which the surrogate's ranking is followed."""

Losses = tuple[float, ...]
UNDER_WAY = "under way"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Facts about the process and its oracle (``study.provenance``), once a session."""

    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return dict(self.facts)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Provenance":
        return cls({k: v for k, v in data.items() if k not in RESERVED})


@checked(frozen=True, slots=True)
class Stage:
    """``state`` of a stage is ``"start"``, ``"end"``, or ``UNDER_WAY``: all time until then counts."""

    stage: str
    state: str


@checked(frozen=True, slots=True)
class Warned:
    """A message for people."""

    message: str


@checked(frozen=True, slots=True)
class FinishedTrial:
    """A trial, the seconds that the search itself took since the last one, and the workers that were kept busy."""

    trial: Trial
    overhead_seconds: float = 0.0
    workers: Annotated[StrictInt, Ge(1)] = 1

    def to_json(self) -> dict[str, Any]:
        workers = {} if self.workers == 1 else {"workers": self.workers}
        return {**self.trial.to_json(), **workers, "overhead_seconds": self.overhead_seconds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FinishedTrial":
        return cls(Trial.from_json(data), **{k: data[k] for k in ("overhead_seconds", "workers") if k in data})


@checked(frozen=True, slots=True)
class Calibration:
    """The learning rate of the run's trials, as in ``TrialSpec``; ``rule`` gives those of other ranks and lengths.

    Trials tried the rates ``tried`` on ``uniform_baselines``; ``trials`` are those that gave losses, with their mean
    (nats). ``source`` says where a rate comes from that no search calibrated.
    """

    learning_rate: float
    rule: str
    tried: tuple[float, ...] = ()
    trials: tuple[Mapping[str, float], ...] = ()
    uniform_baselines: tuple[Stored, ...] = ()
    source: str | None = None


@checked(frozen=True, slots=True)
class Untuned:
    """The model before any training, its weights as they came and without adapters: test loss (nats), losses of every
    test sequence (``SequenceLosses``), and the ``text`` with which it goes on from the held-out ``prompt``."""

    loss: float
    loss_se: float | None
    sequences: tuple[tuple[float, int] | tuple[float, int, int], ...]
    forward_tokens: int
    prompt: str
    text: str


@checked(frozen=True, slots=True)
class Objective:
    """The length that the run minimises the loss of, where trials have fewer steps, ``before``; and what the longer
    training changes in the losses."""

    steps: int
    before: int
    change: Change


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean of differences of losses (nats), with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether it leaves the sign of the difference open."""
        return self.low <= 0 <= self.high


@checked(frozen=True, slots=True)
class Prediction(Interval):
    """What ``effort=instant`` delivers, by learned rates and trainings of ``checked_steps`` steps on one seed.

    ``allocations`` are that one, then those to deliver in turn where it measures over the budget; ``mean`` is its loss
    after ``steps`` less that of ``reference``, the best uniform choice (nats), with the bounds of a 95 % interval;
    ``versus_simple`` the same of ``simple``, the best simple choice; ``mixed`` that of the best mixed allocation to
    ``simple``, where that one is delivered; ``sources`` say what the rates were learned from.
    """

    allocations: tuple[Stored, ...]
    reference: Stored | None
    steps: int
    sources: tuple[str, ...]
    simple: Stored | None
    versus_simple: Interval
    checked_steps: int
    mixed: Interval | None


@checked(frozen=True, slots=True)
class Stopped:
    """The search ended before its effort was spent: its best next proposal, the trial with the key ``before``, gains
    with a ``chance`` below ``least``."""

    before: str
    chance: float
    least: float


@checked(frozen=True, slots=True)
class SurrogateCheck:
    """How well a searcher's surrogate predicts ``n`` observations from the others (``SelfChecking``)."""

    observed: Losses
    predicted: Losses
    sd: Losses
    n: int
    spearman: float | None
    spearman_good: float | None
    nll: float | None
    coverage_50: float | None
    coverage_90: float | None

    @property
    def fails(self) -> bool:
        """Whether it does not support the surrogate's ranking of the better half."""
        return self.spearman_good is None or self.spearman_good <= LEAST_AGREEMENT


@checked(frozen=True, slots=True)
class Choice:
    """The mixed allocation that is confirmed, and by what it was chosen: ``"surrogate"``, ``"loss"``, or
    ``"agreement"`` of both; ``other`` is the one that was not taken."""

    by: str
    candidate: Stored
    other: Stored | None


@checked(frozen=True, slots=True)
class Compared(Interval):
    """Test losses of two allocations on unseen training seeds that gave both (nats), with the interval of candidate -
    reference, of coverage ``level``: over other held-out text of the kind too, or seeds alone."""

    train_seeds: tuple[int, ...]
    candidate_losses: Losses
    reference_losses: Losses
    over_text: bool
    level: float

    @property
    def differences(self) -> Losses:
        """Candidate - reference by seed (nats)."""
        return tuple(c - r for c, r in zip(self.candidate_losses, self.reference_losses, strict=True))


@checked(frozen=True, slots=True)
class Confirmation(Compared):
    """The chosen mixed allocation against the best simple choice; both are one allocation where none is mixed.

    ``reference`` is the fractional choice or ``uniform``, the best uniform one, whichever did better on these seeds.
    ``winner_kind`` is ``"mixed"`` where the interval lies below 0 and the candidate did not fail where the reference
    did not; else the reference wins. ``versus_uniform`` compares the winner with ``uniform``, where the reference is
    another. ``ahead`` is what learned rates add to the difference (nats) from the ``steps`` of all trainings to the
    length that the run minimises, with its standard deviation.
    """

    candidate: Stored
    reference: Stored
    uniform: Stored
    winner_kind: str
    candidate_failed: bool
    steps: int
    ahead: float
    ahead_sd: float
    versus_uniform: Compared | None = None

    @property
    def winner(self) -> Allocation:
        return self.candidate if self.winner_kind == "mixed" else self.reference

    def losses_of(self, allocation: Allocation) -> Losses:
        """Test losses of an allocation that was compared; empty for others."""
        sides = [(self.candidate, self.candidate_losses), (self.reference, self.reference_losses)]
        if (versus := self.versus_uniform) is not None:
            sides += [(self.winner, versus.candidate_losses), (self.uniform, versus.reference_losses)]
        return next((losses for side, losses in sides if losses and side == allocation), ())


@checked(frozen=True, slots=True)
class Measured:
    """Predicted and measured peak bytes of one allocation in the configured scope, before its final fine-tune.

    ``measured_bytes`` is ``None`` where the device measures none or memory ran out; ``fits`` says whether memory
    sufficed, and what was measured is within the budget; ``peaks`` is the memory by phase.
    """

    allocation: Stored
    predicted_bytes: int
    measured_bytes: int | None
    scope: str
    fits: bool
    peaks: Mapping[str, Any]


@checked(frozen=True, slots=True)
class Final:
    """The final fine-tune, with the test loss (nats) of the adapter of ``kept_step``, which is delivered.

    ``curve`` is ``(step, validation loss)``, ``training`` ``(step, mean training loss since the point before)``;
    ``sequences`` and ``text`` are as those of ``Untuned``. ``winner`` is the fingerprint of the allocation that won,
    ``delivered`` that of the first that measured within the budget.
    """

    steps: int
    planned_steps: int
    kept_step: int
    curve: tuple[tuple[int, float], ...]
    loss: float
    loss_se: float | None
    sequences: tuple[tuple[float, int] | tuple[float, int, int], ...]
    text: str
    winner: str
    delivered: str
    training: tuple[tuple[int, float], ...] = ()


@checked(frozen=True, slots=True)
class End:
    """The end of a run: ``"done"``, or ``"next_best"`` where the winner measured over the budget. ``best`` is the
    fingerprint of what is delivered, ``breakdown`` its predicted bytes by part, ``file_bytes`` those of its file."""

    status: str
    best: str
    wall_seconds: float
    overhead_seconds: float
    predicted_bytes: int
    breakdown: Mapping[str, int]
    file_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a journal: its record, the name of the record's kind (``study.lines.KINDS``), and its time."""

    kind: str
    record: Any
    time: datetime
