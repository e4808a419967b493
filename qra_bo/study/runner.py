"""One session of a run: what is in the journal is replayed, what is not is done and written down."""

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import qra_bo
from qra_bo.execution.base import Executor
from qra_bo.memory.formats import parse_format
from qra_bo.space import Allocation
from qra_bo.study.journal import Event, Journal, canonical, check_same_configuration, session_seconds
from qra_bo.study.options import EngineConfig, Parts
from qra_bo.study.provenance import changes, collect
from qra_bo.study.state import Study
from qra_bo.study.status import StatusFile
from qra_bo.trials import SCHEMA_VERSION, Fidelity, Trial, TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import JournalError, OracleError
from qra_bo.utils.redact import redact

ENGINE_STAGES = frozenset({"calibration", "baseline", "reference", "confirmation", "rate_check",
                           "ranking_check"})
"""Stages of evaluations that the engine asks for by itself; all others are a searcher's."""


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """An evaluation that is asked for."""

    spec: TrialSpec
    fidelity: Fidelity
    stage: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """An evaluation of the search that the journal holds, and what was in force when it was written.

    Args:
        evaluation: The evaluation.
        workers: How many evaluations were kept under way.
        planned_cost: What the effort could spend, in training tokens.
        spent: What had been spent of it.
    """

    evaluation: Trial
    workers: int
    planned_cost: float
    spent: float


class Runner:
    """Evaluates through the journal: the engine is a deterministic program, and each step of it that the journal
    already holds is taken from there. So a run that was killed goes on as if it had not been.

    Args:
        config: The run.
        parts: What it is connected to.
        journal: Open.
        status: Kept current.
    """

    def __init__(self, config: EngineConfig, parts: Parts, journal: Journal, status: StatusFile) -> None:
        self.config, self.parts, self.journal, self.status = config, parts, journal, status
        self.executor: Executor = parts.executor
        self.study = Study()
        self._before = session_seconds(journal.content.events)
        self._warned: set[str] = set()
        self._stages: set[tuple[str, str]] = set()
        self._described = False
        self._mark, self._overhead = time.monotonic(), 0.0
        self._under_way: dict[str, PlannedTrial] = {}
        self.replay: deque[Replayed] = deque()
        for event in journal.content.events:
            spent = self.study.search_cost.tokens
            self._take_in(event)
            if event["event"] == "evaluation" and self.study.trials[-1].stage not in ENGINE_STAGES:
                self.replay.append(self._replayed(event, spent))
        self._bits = {f.name: f.bits for f in parts.space.formats}

    def open_run(self) -> None:
        """Write the header of a new run, or check that the journal is of this one and note a changed effort.

        Raises:
            JournalError: If the journal belongs to another configuration.
        """
        effort = {"effort": self.config.effort, "max_full_trials": self.config.max_full_trials,
                  "planned_cost": self.config.planned_cost}
        if not self.study.header:
            self._append("header", {**self._header(), **effort})
        else:
            check_same_configuration(self.journal.path, self.study.header, self.config.config,
                                     self.config.config_sha256, self.config.may_differ)
            self._check_prior()
            current = self.study.last.get("extension", self.study.header)
            if current["planned_cost"] != self.config.planned_cost:
                self._append("extension", effort)
        for message in self.journal.content.warnings:
            self.warn(message)

    def _check_prior(self) -> None:
        """Refuse a prior of the same name that holds something else: the search would not repeat what it asked.

        Raises:
            JournalError: If it does. A journal of an older release does not say what it held.
        """
        before, now = self.study.header.get("prior_sha256"), self.config.prior_sha256
        if before is not None and before != now:
            raise JournalError(f"the run in {self.journal.path} can't be continued: the file of surrogate.prior has "
                               f"changed since it began (sha256 was {before} and is {now}). Restore it, or start a "
                               "new run with another out=")

    def _header(self) -> dict[str, Any]:
        c, space = self.config, self.parts.space
        return {"schema_version": SCHEMA_VERSION, "config": dict(c.config), "config_sha256": c.config_sha256,
                "version": qra_bo.__version__, "seed": c.seed, "train_seed": c.train_seed, "model": c.model,
                "granularity": c.granularity, "units": [u.name for u in space.units],
                "formats": [f.to_json() for f in space.formats], "ranks": list(space.ranks.values),
                "unit_numel": [int(n) for n in space.unit_numel], "budget_bytes": c.budget_bytes,
                "budget_text": c.budget_text, "max_average_bits": c.max_average_bits, "scope": c.scope,
                "oracle": c.oracle, "high_steps": c.high_steps, "low_steps": c.low_steps,
                "full_trial_tokens": c.full_trial_tokens, "uniform_baselines": c.uniform_baselines,
                "alpha_over_rank": c.alpha_over_rank, "init": c.init, "method": c.method,
                "allowance": None if c.allowance is None else dict(c.allowance), "prior_sha256": c.prior_sha256}

    def record(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write one event; the first of a session is preceded by where its results come from."""
        self.describe()
        self._append(event, fields)

    def record_conclusion(self, event: str, fields: Mapping[str, Any]) -> None:
        """``record``, unless the journal's last event of that kind says the same."""
        last = self.study.last.get(event)
        if last is None or any(last.get(k) != v for k, v in fields.items()):
            self.record(event, fields)

    def warn(self, message: str) -> None:
        """Write a warning, once a run."""
        message = redact(message)
        if message not in self._warned:
            self._append("warning", {"message": message})

    def describe(self) -> None:
        """Write the provenance of this session, and warn of what changed since the last one and of what the oracle
        notes; once a session.

        Raises:
            JournalError: If results before and after would not compare.
        """
        if self._described:
            return
        fields = json.loads(canonical(collect(self.executor.describe())))
        before = self.study.last.get("provenance")
        differences = [] if before is None else changes(before, fields)
        self._described = True
        self._append("provenance", fields)
        if differences:
            self.warn(f"since the run was last worked on: {'; '.join(differences)}; small differences in later results "
                      "may come from that")
        for note in fields.get("notes", ()):
            self.warn(note)

    def _append(self, event: str, fields: Mapping[str, Any]) -> None:
        self._take_in(self.journal.append(event, fields))

    def _take_in(self, event: Event) -> None:
        self.study.add(event)
        if event["event"] == "warning":
            self._warned.add(event["message"])
        elif event["event"] == "stage":
            self._stages.add((event["stage"], event["state"]))
        for listener in self.parts.listeners:
            listener(event)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name what is going on; its start and end are written once a run."""
        self.status.stage = name
        self._mark_stage(name, "start")
        self.status.write(self.study, "running")
        yield
        self._mark_stage(name, "end")

    def _mark_stage(self, name: str, state: str) -> None:
        if (name, state) not in self._stages:
            self.record("stage", {"stage": name, "state": state})

    def progress(self, what: str, done: int, total: int) -> None:
        """Pass progress on to people and ``status.json``."""
        self.status.progress(self.study, what, done, total)
        self.parts.progress(what, done, total)

    @property
    def hours(self) -> float:
        """Hours that all sessions have spent on the run."""
        return (self._before + self.journal.elapsed) / 3600

    @property
    def wall_seconds(self) -> float:
        """Seconds that all sessions have spent on the run."""
        return self._before + self.journal.elapsed

    def spec(self, allocation: Allocation, fidelity: Fidelity, *, lr_scale: float | None = None,
                train_seed: int | None = None, split: str = "validation", factor: int = 1) -> TrialSpec:
        """The request of an evaluation; what is not given is as in the search.

        Args:
            allocation: The candidate.
            fidelity: How long.
            lr_scale: Factor on the base learning rate.
            train_seed: Training seed.
            split: Where it is evaluated.
            factor: Times the length of a high-fidelity evaluation, schedule included.
        """
        scale = self.study.lr_scale if lr_scale is None else lr_scale
        steps = self.config.low_steps if fidelity is Fidelity.LOW else self.config.high_steps * factor
        if scale is None or steps is None:
            raise OracleError(f"a {fidelity.value}-fidelity evaluation needs a calibrated learning rate ({scale}) and "
                              f"a length ({steps})")
        return TrialSpec(allocation, steps, self.config.high_steps * factor,
                                 self.config.train_seed if train_seed is None else train_seed, split, scale)

    def evaluate(self, request: TrialSpec, fidelity: Fidelity, stage: str) -> Trial:
        """The evaluation of an engine's own request: the journal's, whatever stage it was made for, or a new one."""
        return self.evaluate_all([PlannedTrial(request, fidelity, stage)])[0]

    def evaluate_all(self, wanted: Sequence[PlannedTrial]) -> list[Trial]:
        """The evaluations of an engine's own requests in their order, new ones as many at once as there are workers."""
        for one in {w.spec.key: w for w in wanted}.values():
            if self.study.find(one.spec.key) is None:
                self.submit(one)
        while self._under_way:
            self.next_finished()
        found = [self.study.find(w.spec.key) for w in wanted]
        return [e for e in found if e is not None]

    @property
    def busy(self) -> bool:
        """Whether an evaluation is under way."""
        return bool(self._under_way)

    def submit(self, wanted: PlannedTrial) -> None:
        """Have an evaluation done."""
        self.describe()
        self._under_way[wanted.spec.key] = wanted
        self.executor.submit(wanted.spec)

    def next_finished(self) -> Trial:
        """Wait for the next evaluation that ends, and write it down: the order in the journal is that of their ends."""
        self._overhead += time.monotonic() - self._mark
        request, measurement = self.executor.finished(self.progress)
        self._mark = time.monotonic()
        wanted = self._under_way.pop(request.key)
        measurement = self._checked(measurement, request)
        a = request.allocation
        evaluation = Trial(1 + max((e.id for e in self.study.trials[-1:]), default=0), a, self.bits(a),
                                wanted.stage, wanted.fidelity, request, self.config.seed, measurement,
                                self.parts.predict_bytes(a))
        fields = {k: v for k, v in evaluation.to_json().items() if k != "event"}
        workers = {"workers": self.executor.workers} if self.executor.workers > 1 else {}
        self._append("evaluation", {**fields, **workers, "overhead_seconds": round(self._overhead, 4)})
        self._overhead = 0.0
        self.status.write(self.study, "running")
        return self.study.trials[-1]

    def _replayed(self, event: Event, spent: float) -> Replayed:
        """The last evaluation of the study with what its line says of its time.

        Raises:
            JournalError: If the number of workers is none.
        """
        workers = event.get("workers", 1)
        if type(workers) is not int or workers < 1:
            raise JournalError(f"an evaluation in the journal {self.journal.path} was made by {workers!r} workers; it "
                               "was not written by this program")
        planned = self.study.last.get("extension", self.study.header)["planned_cost"]
        return Replayed(self.study.trials[-1], workers, float(planned), spent)

    def reset_stopwatch(self) -> None:
        """What went before is not the search's own overhead."""
        self._mark = time.monotonic()

    def bits(self, allocation: Allocation) -> tuple[int, ...]:
        """Code bits of every unit, of formats off the ladder too."""
        return tuple(self._bits[f] if f in self._bits else parse_format(f).bits for f in allocation.formats)

    def _checked(self, m: TrialResult, request: TrialSpec) -> TrialResult:
        """A loss that is not finite is a divergence; one that failed and can't say what it spent is charged in full, so
        that a search of failures ends too."""
        if m.state is TrialState.OK and (m.loss is None or not math.isfinite(m.loss)):
            m = replace(m, state=TrialState.DIVERGED, message=f"the loss is {m.loss}")
        if m.state is TrialState.OK and m.training_tokens + m.forward_tokens <= 0:
            raise OracleError(f"the oracle counted no tokens for {request.key}: an effort could never be spent")
        if m.state is TrialState.OK:
            return m
        tokens = m.training_tokens
        if tokens == 0 and m.forward_tokens == 0:
            tokens = round(self.config.full_trial_tokens * request.steps / self.config.high_steps)
        curve = tuple(p for p in m.curve if math.isfinite(p[1]))
        return replace(m, loss=None, loss_se=None, curve=curve, training_tokens=tokens)
