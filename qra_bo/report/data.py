"""What a journal says, as frozen records: the only input of every table, plot and page."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qra_bo.errors import JournalError, SpaceError
from qra_bo.records import SCHEMA_VERSION, Evaluation, Fidelity
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, StorageFormat
from qra_bo.study.journal import session_seconds

Event = Mapping[str, Any]
FORWARD_SHARE = 1 / 3
"""Cost of a forward-only token in training tokens."""
SIDE_STAGES = frozenset({"calibration", "confirmation", "ranking_check"})
"""Stages whose evaluations are not points of the search."""
JOURNAL_FIELDS = frozenset({"event", "time", "session", "elapsed", "crc"})
BREAKDOWN_KEYS = ("weights", "quant_metadata", "unquantised", "adapters", "gradients", "optimizer", "activations",
                  "workspace")


@dataclass(frozen=True, slots=True)
class Header:
    """What was asked for.

    ``formats`` and ``ranks`` are the ladders, ``unit_numel`` the parameters of every unit, ``planned_cost`` what the
    effort may spend (training tokens).
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
    planned_cost: float | None
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

    @property
    def resolved(self) -> bool:
        """Whether the 95 % interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Measured:
    """Predicted against measured bytes of one allocation; ``breakdown`` is of the prediction."""

    allocation: Allocation
    predicted_bytes: int
    measured_bytes: int | None
    scope: str
    fits: bool
    breakdown: Mapping[str, int] | None


@dataclass(frozen=True)
class ReportData:
    """One run; evaluations are in journal order.

    ``profile_tokens`` are (training, forward-only). ``wall_seconds`` adds up the sessions of a resumed run;
    ``overhead_seconds`` is what passed between evaluations: fits, proposals, journal.
    """

    header: Header
    provenance: Mapping[str, Any]
    profile: SensitivityProfile | None
    profile_tokens: tuple[int, int]
    calibration: Mapping[str, Any] | None
    evaluations: tuple[Evaluation, ...]
    stages: tuple[tuple[str, str], ...]
    confirmation: Confirmation | None
    ranking_check: Mapping[str, Any] | None
    surrogate_check: Mapping[str, Any] | None
    measured: tuple[Measured, ...]
    final: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    end: Mapping[str, Any] | None
    wall_seconds: float
    overhead_seconds: float

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

    @cached_property
    def points(self) -> tuple[Evaluation, ...]:
        """Finished high-fidelity evaluations of search, anchors and references on the validation split."""
        return tuple(e for e in self.evaluations if e.ok and e.fidelity is Fidelity.HIGH and e.stage not in SIDE_STAGES
                     and e.request.split == "validation" and e.request.lr_scale == 1)

    @cached_property
    def candidates(self) -> tuple[Evaluation, ...]:
        """Points that may be incumbent: within the budget and no reference."""
        return tuple(e for e in self.points if e.stage != "reference" and e.predicted_bytes <= self.header.budget_bytes)

    @cached_property
    def baselines(self) -> tuple[Evaluation, ...]:
        return tuple(e for e in self.points if e.stage == "baseline")

    @cached_property
    def references(self) -> tuple[Evaluation, ...]:
        return tuple(e for e in self.points if e.stage == "reference")

    @property
    def incumbent(self) -> Evaluation | None:
        return min(self.candidates, key=_loss, default=None)

    @property
    def best_uniform(self) -> Evaluation | None:
        return min((e for e in self.candidates if e.stage == "baseline"), key=_loss, default=None)

    def reference(self, fmt: str, rank: int) -> Evaluation | None:
        """The evaluated uniform choice, e.g. ``("nf4", 16)`` for QLoRA, or ``None``."""
        return next((e for e in self.points
                     if set(e.allocation.formats) == {fmt} and set(e.allocation.ranks) == {rank}), None)

    @cached_property
    def winner(self) -> Allocation | None:
        """What the run delivers: named by the end event, else the last one measured to fit, else by confirmation,
        else the incumbent."""
        named = None if self.end is None else self.end.get("best")
        if isinstance(named, str):
            by_name = {e.allocation.fingerprint: e.allocation for e in self.evaluations}
            if named in by_name:
                return by_name[named]
        fitting = [m.allocation for m in self.measured if m.fits]
        if fitting:
            return fitting[-1]
        if self.confirmation is not None:
            c = self.confirmation
            return c.candidate if c.winner_kind == "mixed" else c.reference
        return None if self.incumbent is None else self.incumbent.allocation

    def point(self, allocation: Allocation) -> Evaluation | None:
        """The search's own high-fidelity evaluation of ``allocation``, or ``None``."""
        return next((e for e in self.points if e.allocation == allocation), None)

    def measurement(self, allocation: Allocation) -> Measured | None:
        return next((m for m in reversed(self.measured) if m.allocation == allocation), None)

    def bits(self, allocation: Allocation) -> tuple[int, ...]:
        """Code bits of every unit.

        Raises:
            JournalError: If a format is neither on the ladder nor in any evaluation.
        """
        known = {f: b for e in self.evaluations for f, b in zip(e.allocation.formats, e.bits, strict=True)}
        known.update({f.name: f.bits for f in self.header.formats})
        missing = sorted(set(allocation.formats) - set(known))
        if missing:
            raise JournalError(f"the journal does not say how many bits the formats {missing} have")
        return tuple(known[f] for f in allocation.formats)

    def average_bits(self, allocation: Allocation) -> float:
        """Code bits weighted by parameters."""
        return float(np.average(self.bits(allocation), weights=self.header.unit_numel))

    def name(self, allocation: Allocation) -> str:
        """``uniform-4bit-r16``, ``uniform-4bit-r4-6`` (filled), or ``mixed-`` and six digits of the fingerprint."""
        formats, ranks = set(allocation.formats), sorted(set(allocation.ranks))
        if len(formats) > 1 or len(ranks) > 2:
            return f"mixed-{allocation.fingerprint[:6]}"
        bits, fmt = self.bits(allocation)[0], next(iter(formats))
        same_bits = [f.name for f in self.header.formats if f.bits == bits]
        suffix = f"-{fmt}" if len(same_bits) > 1 else ""
        return f"uniform-{bits}bit{suffix}-r{'-'.join(map(str, ranks))}"

    @cached_property
    def high_fidelity_cost(self) -> float | None:
        """Training tokens of one high-fidelity evaluation from its first step: the unit of cost; median."""
        whole = [cost(e) for e in self.evaluations
                 if e.ok and e.fidelity is Fidelity.HIGH and e.measurement.new_steps == self.header.high_steps]
        return float(np.median(whole)) if whole else None

    @property
    def total_cost(self) -> float:
        """Training tokens of profile and all evaluations, failures included; a forward-only token counts 1/3."""
        training, forward = self.profile_tokens
        return training + FORWARD_SHARE * forward + sum(cost(e) for e in self.evaluations)

    def seconds_of(self, fidelity: Fidelity) -> float | None:
        """Median seconds of a finished evaluation at ``fidelity``, or ``None`` before the first."""
        seconds = [e.measurement.seconds for e in self.evaluations if e.ok and e.fidelity is fidelity]
        return float(np.median(seconds)) if seconds else None


def cost(e: Evaluation) -> float:
    """Training tokens of one evaluation; a forward-only token counts 1/3."""
    return e.measurement.training_tokens + FORWARD_SHARE * e.measurement.forward_tokens


def _loss(e: Evaluation) -> float:
    return float("inf") if e.loss is None else e.loss


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
    except (KeyError, TypeError, ValueError, SpaceError) as error:
        raise JournalError(f"an event in the journal is malformed: {error!r}; the report needs the journal as the "
                           "run wrote it") from error


def _parse(events: Sequence[Event], header: Header, warnings: Sequence[str]) -> ReportData:
    last: dict[str, Event] = {e["event"]: e for e in events}
    profile = last.get("profile")
    end = last.get("end")
    overhead = sum(max(0.0, e["elapsed"] - before["elapsed"] - e["seconds"])
                   for before, e in itertools.pairwise(events)
                   if e["event"] == "evaluation" and e["session"] == before["session"])
    return ReportData(
        header=header,
        provenance={k: v for k, v in last.get("provenance", {}).items() if k not in JOURNAL_FIELDS},
        profile=None if profile is None else parse_profile(profile),
        profile_tokens=(0, 0) if profile is None else (int(profile["training_tokens"]), int(profile["forward_tokens"])),
        calibration=last.get("calibration"),
        evaluations=tuple(Evaluation.from_json(e) for e in events if e["event"] == "evaluation"),
        stages=tuple((str(e["stage"]), str(e["state"])) for e in events if e["event"] == "stage"),
        confirmation=_confirmation(last["confirmation"]) if "confirmation" in last else None,
        ranking_check=last.get("ranking_check"),
        surrogate_check=last.get("surrogate_check"),
        measured=tuple(_measured(e) for e in events if e["event"] == "measured"),
        final=last.get("final"),
        warnings=tuple(dict.fromkeys([*warnings, *(str(e["message"]) for e in events if e["event"] == "warning")])),
        end=end,
        wall_seconds=session_seconds(events),
        overhead_seconds=overhead)


def parse_profile(event: Event) -> SensitivityProfile:
    """The sensitivities of a profile event."""
    gain = event["gain"]
    return SensitivityProfile(
        tuple(event["units"]), tuple(event["formats"]), np.array(event["damage"], dtype=np.float64),
        np.array(event["damage_kl"], dtype=np.float64), None if gain is None else np.array(gain, dtype=np.float64),
        float(event["base_loss"]), str(event["source"]))


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
        planned_cost=None if e["planned_cost"] is None else float(e["planned_cost"]), method=str(e["method"]),
        seed=int(e["seed"]), version=str(e["version"]), config=e["config"], config_sha256=str(e["config_sha256"]))


def _confirmation(e: Event) -> Confirmation:
    def floats(key: str) -> tuple[float, ...]:
        return tuple(float(v) for v in e[key])

    return Confirmation(
        Allocation.from_json(e["candidate"]), Allocation.from_json(e["reference"]),
        tuple(int(s) for s in e["train_seeds"]), floats("candidate_losses"), floats("reference_losses"),
        floats("differences"), float(e["mean"]), float(e["low"]), float(e["high"]), str(e["winner_kind"]),
        str(e["split"]))


def _measured(e: Event) -> Measured:
    breakdown = e.get("breakdown")
    return Measured(Allocation.from_json(e["allocation"]), int(e["predicted_bytes"]),
                    None if e["measured_bytes"] is None else int(e["measured_bytes"]), str(e["scope"]),
                    bool(e["fits"]), None if breakdown is None else {k: int(v) for k, v in breakdown.items()})
