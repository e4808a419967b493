"""Frozen view of one run's journal: the only input of every table, figure and page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as checked

from qra_bo.execution.base import ProfileResult
from qra_bo.memory.formats import parse_format
from qra_bo.space import Allocation, StorageFormat
from qra_bo.study import JOURNAL_NAME, RESERVED, Study, allocation_name, read_journal, session_seconds
from qra_bo.trials import Trial, rounding_of
from qra_bo.utils.errors import JournalError, OutputError, SpaceError

BREAKDOWN = {
    "weights": "quantised weights", "quant_metadata": "scales and zeros", "unquantised": "unquantised weights",
    "embeddings": "packed embedding and head", "adapters": "adapters", "gradients": "gradients",
    "optimizer": "optimiser states", "activations": "activations", "workspace": "workspace"}
"""Parts of the predicted memory, in the order of figures, with their labels."""


@checked(frozen=True, slots=True)
class Header:
    """Fields of the journal's header event.

    Args:
        units: Names of the ``L`` units.
        formats: The ladder of ``F`` storage formats, by increasing bits.
        unit_numel: Parameters of every unit, ``L``.
        budget_bytes: Hard limit on predicted bytes in ``scope``; ``budget_text`` is the budget as configured.
        high_steps: Optimiser steps of a full-fidelity trial; ``low_steps`` are those of its prefix, if any.
        full_trial_tokens: Cost of one full-fidelity trial in training tokens.
        train_seed: Training seed of the search's trials; ``seed`` is that of the search itself.
    """

    model: str
    granularity: str
    units: tuple[str, ...]
    formats: tuple[StorageFormat, ...]
    ranks: tuple[int, ...]
    unit_numel: tuple[int, ...]
    budget_bytes: int
    budget_text: str
    scope: str
    oracle: str
    high_steps: int
    low_steps: int | None
    full_trial_tokens: float
    train_seed: int
    method: str
    seed: int
    version: str
    config: Mapping[str, Any]
    config_sha256: str


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

    allocations: tuple[Allocation, ...]
    reference: Allocation | None
    mean: float
    low: float
    high: float
    steps: int
    sources: tuple[str, ...]

    @property
    def uniform(self) -> bool:
        """Whether the best uniform baseline itself was predicted, so that there is no difference."""
        return self.allocations[0] == self.reference


@checked(frozen=True, slots=True)
class Confirmation:
    """Candidate against the best uniform baseline on unseen training seeds.

    Differences are candidate - reference (nats); ``low`` and ``high`` bound their 95 % confidence interval. All were
    trained for ``steps`` steps; ``ahead`` is what learned rates add up to the length that the run minimises.
    """

    candidate: Allocation
    reference: Allocation
    train_seeds: tuple[int, ...]
    candidate_losses: tuple[float, ...]
    reference_losses: tuple[float, ...]
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    winner_kind: str
    split: str
    candidate_failed: bool
    steps: int
    ahead: float


@checked(frozen=True, slots=True)
class Measured:
    """Predicted and measured bytes of one allocation, before its final fine-tune.

    Args:
        measured_bytes: Peak bytes in ``scope``; ``None`` where the device measures none or memory ran out.
        scope: ``"peak"`` or ``"stored"``, as ``memory.scope``.
        fits: Whether memory sufficed and the measured bytes, if any, are within the budget.
    """

    allocation: Allocation
    predicted_bytes: int
    measured_bytes: int | None
    scope: str
    fits: bool


@dataclass(frozen=True)
class ReportData:
    """One run; trials are in journal order. ``Study`` decides which are points, which is incumbent and which wins.

    Args:
        header: Fields of the header event.
        study: The journal, folded.
        winner: The delivered allocation, or the one that would be delivered if the run ended now.
        profile: The measured sensitivities, with their cost.
        prediction: What learned exchange rates predict of an allocation that was not searched for.
        confirmation: Comparison on unseen seeds.
        measured: Measurements of candidate winners, in order.
        warnings: Messages of the journal's reader and of the run.
        wall_seconds: Sum over the sessions of a resumed run.
    """

    header: Header
    study: Study
    winner: Allocation | None
    profile: ProfileResult | None
    prediction: Prediction | None
    confirmation: Confirmation | None
    measured: tuple[Measured, ...]
    warnings: tuple[str, ...]
    wall_seconds: float

    def last(self, event: str) -> dict[str, Any] | None:
        """Fields of the latest event of this name, without those that the journal adds; ``None`` without one."""
        found = self.study.last.get(event)
        return None if found is None else {k: v for k, v in found.items() if k not in RESERVED}

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        return self.last("provenance") or {}

    @property
    def ended(self) -> bool:
        return "end" in self.study.last

    @property
    def state(self) -> str:
        """``"unfinished"`` until the journal's end event, then that event's status."""
        return str(self.study.last["end"].get("status", "done")) if self.ended else "unfinished"

    @property
    def effort(self) -> str:
        """Name of the effort that the run was last started with."""
        return str(self.study.last.get("extension", self.study.header)["effort"])

    @property
    def stage(self) -> str:
        return str(self.study.last.get("stage", {}).get("stage", "start"))

    @property
    def proxy_label(self) -> str | None:
        """Label of results without fine-tuning; ``None`` for real ones."""
        labels = {"synthetic": "SYNTHETIC: planted landscape, no model was trained"}
        kind = self.header.oracle
        return None if kind == "finetune" else labels.get(kind, f"PROXY: results of the oracle {kind!r}")

    @cached_property
    def points(self) -> tuple[Trial, ...]:
        """Points of the search and references, in journal order."""
        references = [e for e in self.study.baselines if e.stage == "reference"]
        return tuple(sorted((*self.study.points, *references), key=lambda e: e.id))

    @property
    def winner_point(self) -> Trial | None:
        """The search's own full-fidelity trial of the winner."""
        return None if self.winner is None else self.point(self.winner)

    @property
    def search_loss(self) -> float | None:
        """Validation loss of ``winner_point``."""
        return None if self.winner_point is None else self.winner_point.loss

    @property
    def reason(self) -> str | None:
        """Why nothing was searched; ``None`` for a search."""
        if self.study.given:
            return str(self.study.header["given"]["reason"])
        return None if self.prediction is None else "the allocation was predicted from the profile"

    @property
    def final_loss(self) -> float | None:
        """Test loss of the final fine-tune (nats per token)."""
        final = self.study.last.get("final")
        return None if final is None else float(final["loss"])

    @property
    def rounding(self) -> str:
        """How the search chose codes: ``"rtn"`` or ``"gptq"``."""
        return rounding_of(self.header.config)

    def point(self, allocation: Allocation, codes: str | None = None) -> Trial | None:
        """The full-fidelity trial of ``allocation`` with ``codes`` (as in ``TrialSpec``), or ``None``."""
        return next((e for e in self.points if e.allocation == allocation and e.spec.codes == codes), None)

    def reference(self, fmt: str, rank: int) -> Trial | None:
        """The trial of a uniform allocation with round-to-nearest codes, e.g. ``("nf4", 16)`` for QLoRA."""
        return next((e for e in self.points
                     if set(e.allocation.formats) == {fmt} and set(e.allocation.ranks) == {rank}
                     and (self.rounding == "rtn" or e.spec.codes == "rtn" or fmt == "fp16")), None)

    @property
    def breakdown(self) -> Mapping[str, int] | None:
        """Predicted bytes of the delivered allocation, by the keys of ``BREAKDOWN``; ``None`` before the end."""
        return dict(self.study.last["end"]["breakdown"]) if self.ended else None

    def measurement(self, allocation: Allocation) -> Measured | None:
        return next((m for m in reversed(self.measured) if m.allocation == allocation), None)

    def bits(self, allocation: Allocation) -> tuple[int, ...]:
        """Code bits of every unit, also of formats off the ladder."""
        known = {f.name: f.bits for f in self.header.formats}
        return tuple(known[f] if f in known else parse_format(f).bits for f in allocation.formats)

    def average_bits(self, allocation: Allocation) -> float:
        """Code bits weighted by parameters."""
        return float(np.average(self.bits(allocation), weights=self.header.unit_numel))

    def name(self, allocation: Allocation, codes: str | None = None) -> str:
        """Return the allocation's name, which no other of the run has (``allocation_name``)."""
        return allocation_name(self.study, allocation, codes)

    @property
    def equivalents(self) -> float:
        """Cost of everything, failures and confirmation included, in full-trial equivalents."""
        return self.study.cost.tokens / self.header.full_trial_tokens


def parse_events(events: Sequence[Mapping[str, Any]], warnings: Sequence[str] = ()) -> ReportData:
    """Check a journal's events and fold them; ``warnings`` are messages of the journal's reader.

    Raises:
        JournalError: If there is no header, an event lacks a field, or the delivered allocation is in none.
    """
    header = next((e for e in events if e.get("event") == "header"), None)
    if header is None:
        raise JournalError("the journal has no header event: it is not the trials.jsonl of a run, or it is empty")
    try:
        study = Study(events)
        profile, confirmation = study.last.get("profile"), study.last.get("confirmation")
        predicted = study.last.get("prediction")
        said = [str(e["message"]) for e in events if e["event"] == "warning"]
        return ReportData(
            header=TypeAdapter(Header).validate_python(header), study=study, winner=study.winner,
            profile=None if profile is None else ProfileResult.from_json(profile),
            prediction=None if predicted is None else TypeAdapter(Prediction).validate_python(predicted),
            confirmation=None if confirmation is None else TypeAdapter(Confirmation).validate_python(confirmation),
            measured=tuple(TypeAdapter(Measured).validate_python(e) for e in study.measured),
            warnings=tuple(dict.fromkeys([*warnings, *said])), wall_seconds=session_seconds(events))
    except (KeyError, TypeError, ValueError, OverflowError, SpaceError) as error:
        raise JournalError(f"an event in the journal is malformed: {error!r}; the report needs the journal as the "
                           "run wrote it") from error


def load_run(folder: Path) -> ReportData:
    """Read the journal in a run's folder.

    Raises:
        OutputError: If the folder holds no journal, or one that is no plain file.
        JournalError: If the journal can't be read.
    """
    path = folder / JOURNAL_NAME
    if not path.is_file():
        raise OutputError(f"{folder} is no run's folder: it holds no {JOURNAL_NAME}; give the out= folder of a run")
    content = read_journal(path)
    return parse_events(content.events, content.warnings)
