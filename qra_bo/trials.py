"""Records that searchers, engine, oracles and journal exchange: frozen, with a JSON codec."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, PlainSerializer, PlainValidator, TypeAdapter
from typing_extensions import TypedDict

from qra_bo.space import Allocation, FloatArray

Stored = Annotated[Allocation, PlainValidator(lambda a: a if isinstance(a, Allocation) else Allocation.from_json(a)),
                   PlainSerializer(Allocation.to_json)]
"""An allocation in a record that pydantic checks, stored as ``to_json`` writes it."""
SCHEMA_VERSION = 3
RESERVED = frozenset({"event", "time", "run", "session", "elapsed", "crc"})
"""Fields that the journal itself adds to every line; ``run``, the checksum of the header, to all but the header."""
SequenceLosses = Sequence[tuple[float, int] | tuple[float, int, int]]
"""Summed loss (nats) and number of target tokens of every held-out sequence of one training, and the document that it
is from; a sequence without one is a document of its own."""


class Fidelity(StrEnum):
    """How long a candidate is trained: ``low`` is a prefix of ``high`` under the same schedule."""

    LOW = "low"
    HIGH = "high"


class TrialState(StrEnum):
    """Outcome of a trial; every state but ``ok`` is a result without a loss, not a crash."""

    OK = "ok"
    OOM = "oom"
    DIVERGED = "diverged"
    FAILED = "failed"


def rounding_of(config: Mapping[str, Any]) -> str:
    """Return ``quantizer.rounding`` of a recorded configuration."""
    return str(config.get("quantizer", {}).get("rounding", "rtn"))


def embeddings_of(config: Mapping[str, Any]) -> int:
    """Return ``embeddings`` of a recorded configuration; 16 where no budget chose them."""
    bits = config.get("embeddings", "auto")
    return 16 if bits == "auto" else int(bits)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate that a searcher proposes; ``stage`` is its origin, e.g. ``"baseline"`` or ``"trust_region"``."""

    allocation: Allocation
    fidelity: Fidelity
    stage: str


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One trial as the engine asks an oracle for it.

    >>> from qra_bo.space import uniform
    >>> TrialSpec(uniform(2, "nf4", 8), 12, 24, train_seed=7, learning_rate=2e-3).key.partition("-")[2]
    '12of24-t7-validation-lr0.002'

    Args:
        steps: Optimiser steps to train in all, under a schedule of ``schedule_steps``.
        schedule_steps: Length of the learning-rate schedule (``steps`` at high fidelity).
        train_seed: Seed of data order and adapter initialisation.
        learning_rate: Peak learning rate at the reference rank and a trial's length; the trainer's rule gives those of
            other ranks and lengths.
        split: ``"validation"`` (all that a search sees) or ``"test"``.
        codes: ``"rtn"``: round to nearest, as the formats' libraries do; ``None``: as configured.
    """

    allocation: Stored
    steps: int
    schedule_steps: int
    train_seed: int
    learning_rate: float
    split: str = "validation"
    codes: str | None = None

    @property
    def key(self) -> str:
        """Name of this trial: specs of one key have one result."""
        return (f"{self.allocation.fingerprint}-{self.steps}of{self.schedule_steps}-t{self.train_seed}"
                f"-{self.split}-lr{self.learning_rate:g}{self._how}")

    @property
    def training(self) -> str:
        """Name of the training, whatever it is evaluated on: trials of all fidelities of an allocation share one."""
        return (f"{self.allocation.fingerprint}-{self.schedule_steps}-t{self.train_seed}-lr{self.learning_rate:g}"
                f"{self._how}")

    @property
    def _how(self) -> str:
        """Suffix for names: codes where they are not as configured."""
        return "" if self.codes is None else f"-{self.codes}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**self.allocation.to_json(), **{f.name: getattr(self, f.name) for f in fields(self)[1:]}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TrialSpec":
        """Inverse of ``to_json``; raises ``SpaceError`` or ``ValueError`` for anything else."""
        return _SPEC.validate_python({**data, "allocation": data})


_SPEC = TypeAdapter(TrialSpec)


class PhasePeak(TypedDict):
    """The largest memory of one phase of a trial (e.g. ``"backward"``): bytes of live storages, and those that the CUDA
    allocator reserved (``None`` on a CPU)."""

    allocated: int
    reserved: int | None


def read_sequence_losses(stored: Sequence[Sequence[float]]) -> tuple[tuple[float, int, int], ...]:
    """Return stored losses of sequences, each a document of its own where none is recorded."""
    return tuple((float(loss), int(n), int(document[0]) if document else i)
                 for i, (loss, n, *document) in enumerate(stored))


@dataclass(frozen=True, slots=True)
class TrialResult:
    """An oracle's answer to a ``TrialSpec``.

    Args:
        loss: Mean held-out loss per target token, or ``None`` unless ``state`` is ``ok``.
        loss_se: Standard error of ``loss`` over evaluation sequences, or ``None``.
        curve: ``(step, held-out loss)`` at the recorded steps; the last is ``(steps, loss)``.
        new_steps: Optimiser steps of this trial (fewer than ``steps`` if continued from a checkpoint).
        training_tokens: Tokens that went forward and backward.
        forward_tokens: Tokens that went forward only.
        measured_bytes: Peak bytes of the configured memory scope, or ``None`` where not measured.
        switch_seconds: The part of it spent on switching the model to the allocation.
        message: Reason for a state other than ``ok``, or empty.
        peaks: Measured memory by phase; empty where nothing was measured.
        sequence_losses: Summed loss, number of target tokens and document of every held-out sequence, where known.
    """

    state: TrialState
    loss: float | None
    loss_se: float | None
    curve: tuple[tuple[int, float], ...]
    new_steps: int
    training_tokens: int
    forward_tokens: int
    measured_bytes: int | None
    seconds: float
    switch_seconds: float = 0.0
    message: str = ""
    peaks: Mapping[str, PhasePeak] = field(default_factory=dict, hash=False)
    sequence_losses: Annotated[tuple[tuple[float, int, int], ...], BeforeValidator(read_sequence_losses)] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        unknown = set[str]() if self.sequence_losses else {"sequence_losses"}
        return dict(_RESULT.dump_python(self, mode="json", exclude=unknown))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TrialResult":
        """Inverse of ``to_json``; raises ``ValueError`` for anything else."""
        return _RESULT.validate_python(dict(data))


_RESULT = TypeAdapter(TrialResult)


def by_document(side: Sequence[SequenceLosses]) -> FloatArray:
    """Return summed losses and target tokens of ``n`` trainings by document, ``n x m x 2``; by sequence where documents
    are not known, or all are of one."""
    losses = np.asarray(side, dtype=np.float64)
    if losses.ndim != 3 or losses.shape[2] == 2:
        return losses
    documents = np.unique(losses[0, :, 2])
    if len(documents) < 2:
        return losses[..., :2]
    return np.stack([losses[:, losses[0, :, 2] == d, :2].sum(axis=1) for d in documents], axis=1)


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished trial, as in the journal and as given to a searcher.

    Args:
        id: Position in the journal's order of ends, from 1.
        bits: Code bits of every unit, ``L``.
        stage: Origin: a stage of the engine, e.g. ``"baseline"``, or a searcher's, e.g. ``"trust_region"``.
        seed: Seed of the search; the training seed is that of ``spec``.
        predicted_bytes: Bytes of the memory model in the configured scope.
    """

    id: int
    allocation: Stored
    bits: tuple[int, ...]
    stage: str
    fidelity: Fidelity
    spec: TrialSpec
    seed: int
    result: TrialResult
    predicted_bytes: int

    @property
    def ok(self) -> bool:
        return self.result.state is TrialState.OK

    @property
    def loss(self) -> float | None:
        return self.result.loss

    def within(self, budget_bytes: int) -> bool:
        """Whether its predicted bytes, and the measured ones where there are some, are within a budget."""
        return max(self.predicted_bytes, self.result.measured_bytes or 0) <= budget_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the journal's event."""
        return {"event": "trial", "id": self.id, "key": self.spec.key, "fingerprint": self.allocation.fingerprint,
                "bits": list(self.bits), "stage": self.stage, "fidelity": self.fidelity.value, "seed": self.seed,
                "predicted_bytes": self.predicted_bytes, **self.spec.to_json(), **self.result.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Trial":
        """Inverse of ``to_json``; raises ``SpaceError`` or ``ValueError`` for anything else."""
        spec, result = TrialSpec.from_json(data), TrialResult.from_json(data)
        return _TRIAL.validate_python({**data, "allocation": spec.allocation, "spec": spec, "result": result})


_TRIAL = TypeAdapter(Trial)
