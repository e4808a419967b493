"""What a journal says, as frozen records: the only input of every table, plot and page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qra_bo.execution.messages import ProfileResult
from qra_bo.memory.formats import parse_format
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, StorageFormat
from qra_bo.study.journal import session_seconds
from qra_bo.study.state import Study
from qra_bo.trials import SCHEMA_VERSION, Trial, rounding_of
from qra_bo.utils.errors import JournalError, SpaceError

Event = Mapping[str, Any]
JOURNAL_FIELDS = frozenset({"event", "time", "session", "elapsed", "crc"})
BREAKDOWN_KEYS = ("weights", "quant_metadata", "unquantised", "adapters", "gradients", "optimizer", "activations",
                  "workspace")


@dataclass(frozen=True, slots=True)
class Header:
    """What was asked for.

    ``formats`` and ``ranks`` are the ladders, ``unit_numel`` the parameters of every unit, ``full_trial_tokens``
    the cost of one evaluation at high fidelity (training tokens).
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
    effort: str
    full_trial_tokens: float
    train_seed: int
    method: str
    seed: int
    version: str
    config: Mapping[str, Any]
    config_sha256: str


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Candidate against the best uniform on unseen training seeds: differences are candidate - reference (nats)."""

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

    @property
    def resolved(self) -> bool:
        """Whether the 95 % interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Measured:
    """Predicted against measured bytes of one allocation."""

    allocation: Allocation
    predicted_bytes: int
    measured_bytes: int | None
    scope: str
    fits: bool


@dataclass(frozen=True)
class ReportData:
    """One run; evaluations are in journal order. What counts as a point, incumbent or winner is the study's to say.

    ``profile_tokens`` are (training, forward-only). ``wall_seconds`` adds up the sessions of a resumed run.
    """

    header: Header
    study: Study
    provenance: Mapping[str, Any]
    profile: SensitivityProfile | None
    profile_tokens: tuple[int, int]
    calibration: Mapping[str, Any] | None
    stages: tuple[tuple[str, str], ...]
    confirmation: Confirmation | None
    rate_check: Mapping[str, Any] | None
    ranking_check: Mapping[str, Any] | None
    surrogate_check: Mapping[str, Any] | None
    measured: tuple[Measured, ...]
    final: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    end: Mapping[str, Any] | None
    wall_seconds: float

    @property
    def state(self) -> str:
        """``"unfinished"`` until the journal's end event, then that event's status."""
        return "unfinished" if self.end is None else str(self.end.get("status", "done"))

    @property
    def stage(self) -> str:
        return self.stages[-1][0] if self.stages else "start"

    @property
    def proxy_label(self) -> str | None:
        """What to call results that no fine-tuning stands behind; ``None`` for real ones."""
        labels = {"synthetic": "SYNTHETIC: planted landscape, no model was trained",
                  "benchmark": "PROXY: a table fitted on earlier evaluations, no model was trained in this run"}
        kind = self.header.oracle
        return None if kind == "finetune" else labels.get(kind, f"PROXY: results of the oracle {kind!r}")

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(self.study.trials)

    @cached_property
    def points(self) -> tuple[Trial, ...]:
        """Points of the search and references, in journal order."""
        references = [e for e in self.study.baselines if e.stage == "reference"]
        return tuple(sorted((*self.study.points, *references), key=lambda e: e.id))

    @property
    def candidates(self) -> tuple[Trial, ...]:
        """Points that may be incumbent."""
        return self.study.points

    @property
    def incumbent(self) -> Trial | None:
        return self.study.incumbent

    @property
    def best_uniform(self) -> Trial | None:
        return self.study.best_uniform

    def reference(self, fmt: str, rank: int) -> Trial | None:
        """The evaluated uniform choice with the codes of its library, e.g. ``("nf4", 16)`` for QLoRA, or ``None``."""
        return next((e for e in self.points
                     if set(e.allocation.formats) == {fmt} and set(e.allocation.ranks) == {rank}
                     and (not self.has_chosen_codes or e.spec.codes == "rtn" or fmt == "fp16")), None)

    @property
    def has_chosen_codes(self) -> bool:
        """Whether the codes of the search are other than the nearest."""
        return rounding_of(self.header.config) != "rtn"

    @cached_property
    def winner(self) -> Allocation | None:
        """What the run delivers, or would if it ended now."""
        return self.study.winner

    def point(self, allocation: Allocation, codes: str | None = None) -> Trial | None:
        """The high-fidelity evaluation of ``allocation`` with ``codes`` (as in ``TrialSpec``), or ``None``."""
        return next((e for e in self.points if e.allocation == allocation and e.spec.codes == codes), None)

    @property
    def breakdown(self) -> Mapping[str, int] | None:
        """Predicted bytes of what is delivered, part by part; ``None`` before the end."""
        return None if self.end is None else {k: int(v) for k, v in self.end["breakdown"].items()}

    def measurement(self, allocation: Allocation) -> Measured | None:
        return next((m for m in reversed(self.measured) if m.allocation == allocation), None)

    def bits(self, allocation: Allocation) -> tuple[int, ...]:
        """Code bits of every unit, of formats off the ladder too."""
        known = {f.name: f.bits for f in self.header.formats}
        return tuple(known[f] if f in known else parse_format(f).bits for f in allocation.formats)

    def average_bits(self, allocation: Allocation) -> float:
        """Code bits weighted by parameters."""
        return float(np.average(self.bits(allocation), weights=self.header.unit_numel))

    def name(self, allocation: Allocation, codes: str | None = None) -> str:
        """``uniform-4bit-r16``, ``uniform-4bit-r4-6`` (filled), or ``mixed-`` and six digits of the fingerprint; with
        ``codes`` other than the search's at the end."""
        if codes is not None:
            return f"{self.name(allocation)}-{codes}"
        formats, ranks = set(allocation.formats), sorted(set(allocation.ranks))
        if len(formats) > 1 or len(ranks) > 2:
            return f"mixed-{allocation.fingerprint[:6]}"
        bits, fmt = self.bits(allocation)[0], next(iter(formats))
        same_bits = [f.name for f in self.header.formats if f.bits == bits]
        suffix = f"-{fmt}" if len(same_bits) > 1 else ""
        return f"uniform-{bits}bit{suffix}-r{'-'.join(map(str, ranks))}"

    @property
    def total_cost(self) -> float:
        """Training tokens of everything, failures and confirmation included; a forward-only token counts 1/3."""
        return self.study.cost.tokens

    @property
    def equivalents(self) -> float:
        """``total_cost`` in evaluations at high fidelity."""
        return self.total_cost / self.header.full_trial_tokens


def parse_events(events: Sequence[Event], warnings: Sequence[str] = ()) -> ReportData:
    """Read a journal's events; ``warnings`` are what its reader had to say.

    Raises:
        JournalError: If there is no header, its schema is newer, or an event lacks a field.
    """
    try:
        header = next((e for e in events if e["event"] == "header"), None)
        if header is None:
            raise JournalError("the journal has no header event: it is not the trials.jsonl of a run, or it is empty")
        return _parse(events, _header(header), warnings)
    except (KeyError, TypeError, ValueError, OverflowError, SpaceError) as error:
        raise JournalError(f"an event in the journal is malformed: {error!r}; the report needs the journal as the "
                           "run wrote it") from error


def _parse(events: Sequence[Event], header: Header, warnings: Sequence[str]) -> ReportData:
    study = Study(events)
    last = study.last
    profile = last.get("profile")
    told = [str(e["message"]) for e in events if e["event"] == "warning"]
    return ReportData(
        header=header, study=study,
        provenance={k: v for k, v in last.get("provenance", {}).items() if k not in JOURNAL_FIELDS},
        profile=None if profile is None else ProfileResult.from_json(profile).profile,
        profile_tokens=(0, 0) if profile is None else (int(profile["training_tokens"]), int(profile["forward_tokens"])),
        calibration=last.get("calibration"),
        stages=tuple((str(e["stage"]), str(e["state"])) for e in events if e["event"] == "stage"),
        confirmation=_confirmation(last["confirmation"]) if "confirmation" in last else None,
        rate_check=last.get("rate_check"), ranking_check=last.get("ranking_check"),
        surrogate_check=last.get("surrogate_check"),
        measured=tuple(_measured(e) for e in study.measured), final=last.get("final"),
        warnings=tuple(dict.fromkeys([*warnings, *told])), end=last.get("end"),
        wall_seconds=session_seconds(events))


def _header(e: Event) -> Header:
    if int(e["schema_version"]) > SCHEMA_VERSION:
        raise JournalError(f"the journal has schema {e['schema_version']}, this release reads up to {SCHEMA_VERSION}; "
                           "update qra_bo to read it")
    formats = tuple(StorageFormat(f["name"], f["backend"], int(f["bits"]), int(f["block"]), bool(f["double_quant"]))
                    for f in e["formats"])
    return Header(
        model=str(e["model"]), granularity=str(e["granularity"]), units=tuple(e["units"]), formats=formats,
        ranks=tuple(int(r) for r in e["ranks"]), unit_numel=tuple(int(n) for n in e["unit_numel"]),
        budget_bytes=int(e["budget_bytes"]), budget_text=str(e["budget_text"]), scope=str(e["scope"]),
        oracle=str(e["oracle"]), high_steps=int(e["high_steps"]),
        low_steps=None if e["low_steps"] is None else int(e["low_steps"]), effort=str(e["effort"]),
        full_trial_tokens=float(e["full_trial_tokens"]),
        train_seed=int(e["train_seed"]), method=str(e["method"]),
        seed=int(e["seed"]), version=str(e["version"]), config=e["config"], config_sha256=str(e["config_sha256"]))


def _confirmation(e: Event) -> Confirmation:
    def floats(key: str) -> tuple[float, ...]:
        return tuple(float(v) for v in e[key])

    return Confirmation(
        Allocation.from_json(e["candidate"]), Allocation.from_json(e["reference"]),
        tuple(int(s) for s in e["train_seeds"]), floats("candidate_losses"), floats("reference_losses"),
        floats("differences"), float(e["mean"]), float(e["low"]), float(e["high"]), str(e["winner_kind"]),
        str(e["split"]), bool(e["candidate_failed"]))


def _measured(e: Event) -> Measured:
    return Measured(Allocation.from_json(e["allocation"]), int(e["predicted_bytes"]),
                    None if e["measured_bytes"] is None else int(e["measured_bytes"]), str(e["scope"]),
                    bool(e["fits"]))
