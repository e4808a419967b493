"""Kinds of events in a run's journal: each is one frozen record, checked once when its line is decoded."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from qra_bo.execution.base import ProfileResult
from qra_bo.memory.allowance import Allowance
from qra_bo.oracle.protocol import FINETUNE
from qra_bo.sensitivity.change import Change
from qra_bo.space import Allocation, StorageFormat
from qra_bo.trials import RESERVED, Trial
from qra_bo.utils.errors import JournalError, ProfileError, SpaceError

CALIBRATED = "calibrated in the search that found the allocation"
BY_RULE = "adapter.lr by its rule, not calibrated"
"""Sources of a given allocation's learning rate. A file may state another (``learning_rate_source``)."""
LEAST_AGREEMENT = 0.0
"""Spearman correlation of left-out losses, over their better half, above which the surrogate's ranking is followed."""

Stored = Annotated[Allocation, PlainValidator(lambda a: a if isinstance(a, Allocation) else Allocation.from_json(a)),
                   PlainSerializer(Allocation.to_json)]
StoredChange = Annotated[Change, PlainValidator(lambda c: c if isinstance(c, Change) else Change.from_json(c)),
                         PlainSerializer(Change.to_json)]
"""Fields that are stored as ``to_json`` writes them."""


@checked(frozen=True, slots=True)
class Given:
    """Allocations to train without a search, in the order of preference: the first that measures within the budget.

    Args:
        allocations: At least one.
        reason: Why nothing is searched, as the end of a sentence.
        learning_rate: As in ``TrialSpec``.
        rate_source: Where the rate comes from.
        notes: Sentences that the run keeps as warnings.
    """

    allocations: tuple[Stored, ...]
    reason: str
    learning_rate: float
    rate_source: str = BY_RULE
    notes: tuple[str, ...] = ()


@checked(frozen=True, slots=True)
class Effort:
    """What a run may spend, and what it checks at its end; an ``extension`` of a run that goes on holds nothing else.

    Args:
        effort: Name of the preset.
        max_full_trials: Full-trial equivalents of the search; 0: the allocation is predicted.
        planned_cost: The same in training tokens.
        uniform_baselines: Number of uniform baselines; ``None``: all.
        references: Whether LoRA and QLoRA are trained.
        ranking_top: Allocations of the ranking check.
        rate_factors: Factors on the calibrated learning rate at which the confirmation is repeated.
    """

    effort: str
    max_full_trials: float
    planned_cost: float
    uniform_baselines: int | None
    references: bool
    ranking_top: int
    rate_factors: tuple[float, ...]


@checked(frozen=True, slots=True)
class Header(Effort):
    """The first event: what the run is of.

    Args:
        units: Names of the ``L`` units.
        formats: The ladder of ``F`` storage formats, by increasing bits.
        unit_numel: Parameters of every unit, ``L``.
        budget_bytes: Hard limit on predicted bytes in ``scope``; ``budget_text`` is the budget as configured.
        high_steps: Optimiser steps of a full-fidelity trial; ``low_steps`` are those of its prefix, if any.
        full_trial_tokens: Cost of one full-fidelity trial in training tokens.
        train_seed: Training seed of the search's trials; ``seed`` is that of the search itself.
        allowance: What the device's allocator was assumed to need; ``None``: what the memory model assumes.
        given: What is trained without a search; ``None`` for a search.
    """

    schema_version: int
    config: Mapping[str, Any]
    config_sha256: str
    version: str
    seed: int
    train_seed: int
    model: str
    granularity: str
    units: tuple[str, ...]
    formats: tuple[StorageFormat, ...]
    ranks: tuple[int, ...]
    unit_numel: tuple[int, ...]
    budget_bytes: int
    budget_text: str
    max_average_bits: float | None
    scope: str
    oracle: str
    high_steps: int
    low_steps: int | None
    full_trial_tokens: float
    alpha_over_rank: float
    init: str
    method: str
    rates_sha256: str | None
    allowance: Allowance | None = None
    given: Given | None = None

    @property
    def trains(self) -> bool:
        """Whether the run's oracle really fine-tunes a model."""
        return self.oracle == FINETUNE


@checked(frozen=True, slots=True)
class Provenance:
    """Facts about the process and its oracle (``study.provenance``), once a session."""

    facts: Annotated[Mapping[str, Any], Field(default_factory=dict)]


@checked(frozen=True, slots=True)
class Stage:
    """``state`` of a stage is ``"start"`` or ``"end"``."""

    stage: str
    state: str


@checked(frozen=True, slots=True)
class Warned:
    """A message for people."""

    message: str


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """A trial, the seconds that the search itself took since the last one, and the workers that were kept busy."""

    trial: Trial
    overhead_seconds: float
    workers: int

    def to_json(self) -> dict[str, Any]:
        workers = {} if self.workers == 1 else {"workers": self.workers}
        return {**self.trial.to_json(), **workers, "overhead_seconds": self.overhead_seconds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FinishedTrial":
        workers = data.get("workers", 1)
        if type(workers) is not int or workers < 1:
            raise ValueError(f"it was made by {workers!r} workers")
        return cls(Trial.from_json(data), float(data.get("overhead_seconds", 0.0)), workers)


@checked(frozen=True, slots=True)
class RateTried:
    """A learning rate of the calibration and the mean loss of its trials (nats)."""

    learning_rate: float
    loss: float


@checked(frozen=True, slots=True)
class Calibration:
    """The learning rate of the run's trials.

    Args:
        learning_rate: As in ``TrialSpec``; ``rule`` says what it becomes at other ranks and lengths.
        tried: Rates that trials tried; ``trials`` are those that gave a loss.
        uniform_baselines: Allocations that were trained at every rate.
        source: Where a rate comes from that this run did not calibrate.
    """

    learning_rate: float
    rule: str
    tried: tuple[float, ...] = ()
    trials: tuple[RateTried, ...] = ()
    uniform_baselines: tuple[Stored, ...] = ()
    source: str | None = None


@checked(frozen=True, slots=True)
class Untuned:
    """Test loss of the model in 16 bits without adapters (nats)."""

    loss: float
    loss_se: float | None
    forward_tokens: int


@checked(frozen=True, slots=True)
class Objective:
    """The length that the run minimises the loss of, where that is not the one of its trials, ``before`` steps; and
    what the longer training changes in the losses."""

    steps: int
    before: int
    change: StoredChange


@checked(frozen=True, slots=True)
class Prediction:
    """Allocation of ``effort=instant`` against the best uniform baseline, as predicted; no trial was run.

    Args:
        allocations: The predicted one, then those to deliver in turn where it measures over the budget.
        reference: The best uniform baseline as predicted; ``None`` where it can't be predicted.
        mean: Predicted loss less that of the reference (nats); ``low`` and ``high`` bound its 95 % interval.
        steps: Optimiser steps of the training that it is predicted for.
        sources: What it was learned from, in words.
    """

    allocations: tuple[Stored, ...]
    reference: Stored | None
    mean: float
    low: float
    high: float
    steps: int
    sources: tuple[str, ...]


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

    observed: tuple[float, ...]
    predicted: tuple[float, ...]
    sd: tuple[float, ...]
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
class Compared:
    """Two allocations on unseen training seeds.

    Losses are of the seeds that gave both (nats); ``mean`` is that of candidate - reference, ``low`` and ``high`` bound
    its 95 % confidence interval.
    """

    train_seeds: tuple[int, ...]
    candidate_losses: tuple[float, ...]
    reference_losses: tuple[float, ...]
    mean: float
    low: float
    high: float

    @property
    def differences(self) -> tuple[float, ...]:
        """Candidate - reference by seed (nats)."""
        return tuple(c - r for c, r in zip(self.candidate_losses, self.reference_losses, strict=True))


@checked(frozen=True, slots=True)
class Confirmation(Compared):
    """The chosen mixed allocation against the best uniform one; both are one allocation where none is mixed.

    Args:
        winner_kind: ``"mixed"`` where the candidate has the lower loss in the mean, ``ahead`` added, and never failed
            alone; else ``"uniform"``.
        candidate_failed: Whether the candidate failed where the reference did not.
        split: Split of all losses.
        steps: Optimiser steps of all trainings.
        ahead: What learned rates add to the difference up to the length that the run minimises (nats).
    """

    candidate: Stored
    reference: Stored
    winner_kind: str
    candidate_failed: bool
    split: str
    steps: int
    ahead: float

    @property
    def winner(self) -> Allocation:
        return self.candidate if self.winner_kind == "mixed" else self.reference


@checked(frozen=True, slots=True)
class AtRate(Compared):
    """The confirmation's comparison at ``factor`` times the calibrated learning rate."""

    factor: float


@checked(frozen=True, slots=True)
class RateCheck:
    """The confirmation's comparison at other learning rates; at those in ``failed_at`` the candidate failed on a seed
    where the reference did not."""

    candidate: Stored
    reference: Stored
    rates: tuple[AtRate, ...]
    failed_at: tuple[float, ...]


@checked(frozen=True, slots=True)
class RankingCheck:
    """Losses of the best allocations after ``steps``, beside those of the search, and their rank correlation."""

    steps: int
    fingerprints: tuple[str, ...]
    losses: tuple[float, ...]
    search_losses: tuple[float, ...]
    spearman: float | None


@checked(frozen=True, slots=True)
class Measured:
    """Predicted and measured bytes of one allocation, before its final fine-tune.

    Args:
        measured_bytes: Peak bytes in ``scope``; ``None`` where the device measures none or memory ran out.
        scope: ``"peak"`` or ``"stored"``, as ``memory.scope``.
        fits: Whether memory sufficed and the measured bytes, if any, are within the budget.
        peaks: Memory by phase.
    """

    allocation: Stored
    predicted_bytes: int
    measured_bytes: int | None
    scope: str
    fits: bool
    peaks: Annotated[Mapping[str, Any], Field(default_factory=dict)]


@checked(frozen=True, slots=True)
class Final:
    """The final fine-tune.

    Args:
        steps: Optimiser steps; ``planned_steps`` would have been done without an early stop.
        kept_step: The step whose adapter is delivered.
        curve: ``(step, validation loss)``.
        loss: Test loss of what is delivered, with its standard error over sequences (nats).
        winner: Fingerprint of the allocation that won; ``delivered``: of the first that measured within the budget.
        adapter: Folder of the adapter in the run's.
        sample: Text before and after, if there is one.
    """

    steps: int
    planned_steps: int
    kept_step: int
    curve: tuple[tuple[int, float], ...]
    loss: float
    loss_se: float | None
    winner: str
    delivered: str
    adapter: str = "adapter"
    sample: Mapping[str, str] | None = None


@checked(frozen=True, slots=True)
class Folded:
    """The device's allowance after the peaks of this run, up to the trial ``last_id``, were folded in."""

    device: str
    measured: int
    fixed_bytes: int
    share_ppm: int
    measurements: int
    last_id: int


@checked(frozen=True, slots=True)
class End:
    """The end of a run.

    Args:
        status: ``"done"``, or ``"next_best"`` where the winner measured over the budget.
        best: Fingerprint of what is delivered; ``breakdown`` are its predicted bytes by part.
        file_bytes: Bytes of the whole model as a file.
    """

    status: str
    best: str
    wall_seconds: float
    overhead_seconds: float
    predicted_bytes: int
    breakdown: Mapping[str, int]
    file_bytes: int | None = None


Record = (Header | Effort | Provenance | Stage | Warned | ProfileResult | FinishedTrial | Calibration | Untuned
          | Objective | Prediction | Stopped | SurrogateCheck | Choice | Confirmation | RateCheck | RankingCheck
          | Measured | Final | Folded | End)
KINDS: dict[str, type[Any]] = {
    "header": Header, "extension": Effort, "provenance": Provenance, "stage": Stage, "warning": Warned,
    "profile": ProfileResult, "trial": FinishedTrial, "calibration": Calibration, "untuned": Untuned,
    "objective": Objective, "prediction": Prediction, "stopped": Stopped, "surrogate_check": SurrogateCheck,
    "choice": Choice, "confirmation": Confirmation, "rate_check": RateCheck, "ranking_check": RankingCheck,
    "measured": Measured, "final": Final, "allowance": Folded, "end": End}
"""Names of the kinds in the journal; ``Study`` has the last record of each under its name."""
NAMES: dict[type[Any], str] = {record: name for name, record in KINDS.items()}


@functools.cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(KINDS[kind])


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a journal: its record, and when it was written."""

    record: Record
    time: datetime

    @property
    def kind(self) -> str:
        return NAMES[type(self.record)]


def encode(record: Record) -> dict[str, Any]:
    """Return the fields of a record's line as JSON values."""
    if isinstance(record, Provenance):
        return dict(record.facts)
    if isinstance(record, FinishedTrial | ProfileResult):
        return {k: v for k, v in record.to_json().items() if k != "event"}
    return dict(_adapter(NAMES[type(record)]).dump_python(record, mode="json"))


def as_line(event: Event) -> dict[str, Any]:
    """Return an event as a mapping for programs outside the project: its fields with ``event`` and ``time``."""
    return {"event": event.kind, "time": event.time.isoformat(), **encode(event.record)}


def decode(line: Mapping[str, Any]) -> Event:
    """Return the event of a journal's line.

    Raises:
        JournalError: If it is of no known kind, or malformed.
    """
    name = line.get("event")
    try:
        kind = KINDS[str(name)]
        if kind is Provenance:
            record: Record = Provenance({k: v for k, v in line.items() if k not in RESERVED})
        elif kind in (FinishedTrial, ProfileResult):
            record = kind.from_json(line)
        else:
            record = _adapter(str(name)).validate_python(dict(line))
        return Event(record, datetime.fromisoformat(line["time"]))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, SpaceError,
            ProfileError) as error:
        why = repr(error)
    raise JournalError(f"the {name} event in the journal is malformed: {why}; it was not written by this program")
