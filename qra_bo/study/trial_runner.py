"""Trials of one session of a run: what the journal holds is replayed, what it lacks is evaluated and written down."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from qra_bo.config.resume import UNSAID, differences
from qra_bo.execution.base import Executor
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.searchers.rates.files import rates_sha256
from qra_bo.space import Allocation
from qra_bo.study.given import check_same_given
from qra_bo.study.journal import Event, Journal, canonical, session_seconds
from qra_bo.study.provenance import changes, check_same_configuration, collect
from qra_bo.study.setting import Setting
from qra_bo.study.state import UNSEARCHED_STAGES, Study
from qra_bo.study.status import StatusFile
from qra_bo.trials import SCHEMA_VERSION, Fidelity, Trial, TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import JournalError, OracleError, QRABOError, TrainingError
from qra_bo.utils.redact import redact
from qra_bo.utils.version import __version__

Listener = Callable[[Mapping[str, Any]], None]
"""Gets every journal event of a run, those of earlier sessions first."""
ENGINE_STAGES = frozenset({"calibration", "baseline", *UNSEARCHED_STAGES})
"""Stages of trials that the engine plans; all other stages are a searcher's."""


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """A trial that is asked for; ``stage`` is one of ``ENGINE_STAGES``, or the origin that a searcher gives it."""

    spec: TrialSpec
    fidelity: Fidelity
    stage: str


class TrialRunner:
    """Evaluates through the journal: each step of the (deterministic) engine that it holds is taken from there, so that
    a run that was killed goes on as if it had not been.

    Args:
        budget_bytes: Hard limit on predicted bytes, in the scope of ``setting.memory``.
        journal: Open for writing; ``status.json`` is kept beside it.
        listeners: Called with every event, those of earlier sessions first.
        progress: Called with what is done, how much of it, and of how much.

    Attributes:
        under_way: Trials that the executor has, by their keys.
        replay: Trials of the search that the journal holds and the search has not asked for yet, each with the number
            of workers when it was written, and the training tokens that the effort had left to spend.
    """

    def __init__(self, setting: Setting, budget_bytes: int, journal: Journal, executor: Executor,
                 listeners: Sequence[Listener] = (), progress: Progress = quiet) -> None:
        self.setting, self.config, self.budget_bytes = setting, setting.config, budget_bytes
        self.journal, self.executor, self.status = journal, executor, StatusFile(journal.path.parent)
        self.study = Study()
        self._listeners, self._progress = listeners, progress
        self._before = session_seconds(journal.content.events)
        self._warned: set[str] = set()
        self._staged: set[tuple[str, str]] = set()
        self._described = False
        self._mark, self._overhead = time.monotonic(), 0.0
        self.under_way: dict[str, PlannedTrial] = {}
        self.replay: deque[tuple[Trial, int, float]] = deque()
        for event in journal.content.events:
            spent = self.study.search_cost.tokens
            self._take_in(event)
            if event["event"] == "trial" and self.study.trials[-1].stage not in ENGINE_STAGES:
                self.replay.append((self.study.trials[-1], self.study.workers, self.study.planned_cost - spent))
        self._searched = session_seconds(e for e in journal.content.events if _of_search(e))

    def begin(self) -> None:
        """Write the header of a new run, or check that the journal is of this one and note a changed effort.

        Raises:
            JournalError: If the journal belongs to another configuration.
        """
        effort = {"effort": self.config.effort.name, "max_full_trials": float(self.config.effort.max_full_trials),
                  "planned_cost": self.setting.planned_cost,
                  "uniform_baselines": self.config.effort.uniform_baselines,
                  "references": self.config.effort.references, "ranking_top": self.config.effort.ranking_top,
                  "rate_factors": list(self.config.effort.rate_factors)}
        learned = {"rates_sha256": rates_sha256(self.config.surrogate.rates)}
        header = self.study.header
        if not header:
            self._append("header", {**self._header(), **learned, **effort})
        else:
            config = self.config.to_journal()
            check_same_given(self.journal.path, header, self.setting.given)
            check_same_configuration(self.journal.path, header, config, self.config.config_sha256)
            for name, now in learned.items():
                if (before := header[name]) != now:  # the run would not repeat its proposals or its prediction
                    raise JournalError(f"the run in {self.journal.path} can't be continued: the file of surrogate."
                                       f"{name.removesuffix('_sha256')} has changed since it began (sha256 was "
                                       f"{before} and is {now}). Restore it, or start a new run with another out=")
            if self.study.planned_cost != self.setting.planned_cost:
                self._append("extension", effort)
            other = [f"{key} {old} -> {new}" for key, old, new in
                     differences(header["config"], config, harmless=True) if key not in UNSAID]
            if other:
                self.warn(f"continued with settings that change no finished trial: {', '.join(other)}")
        for message in self.journal.content.warnings:
            self.warn(message)

    def _header(self) -> dict[str, Any]:
        c, s = self.config, self.setting
        allowance = s.memory.allowance
        return {"schema_version": SCHEMA_VERSION, "config": c.to_journal(), "config_sha256": c.config_sha256,
                "version": __version__, "seed": c.seed, "train_seed": s.train_seed, "model": c.model_name,
                "granularity": c.granularity, "units": [u.name for u in s.space.units],
                "formats": [f.to_json() for f in s.space.formats], "ranks": list(s.space.ranks.values),
                "unit_numel": [int(n) for n in s.space.unit_numel], "budget_bytes": self.budget_bytes,
                "budget_text": str(c.budget[0]), "max_average_bits": c.max_average_bits, "scope": c.memory.scope,
                "oracle": c.oracle.name, "high_steps": c.fidelity.high, "low_steps": c.fidelity.low,
                "full_trial_tokens": s.full_trial_tokens, "alpha_over_rank": c.adapter.alpha_over_rank,
                "init": c.adapter.init, "method": c.method.name,
                "allowance": None if allowance is None else asdict(allowance),
                "given": None if s.given is None else s.given.to_json()}

    def record(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write one event; the first of a session is preceded by its provenance."""
        self._describe()
        self._append(event, fields)

    def record_conclusion(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write one event, unless the journal's last event of that kind says the same."""
        last = self.study.last.get(event)
        if last is None or any(last.get(k) != v for k, v in fields.items()):
            self.record(event, fields)

    def warn(self, message: str) -> None:
        """Write a warning, once a run."""
        message = redact(message)
        if message not in self._warned:
            self._append("warning", {"message": message})

    def _describe(self) -> None:
        """Write the provenance once a session, and warn of changes since the last one and of the oracle's notes.

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
            self._staged.add((event["stage"], event["state"]))
        elif event["event"] == "extension":  # the stages are gone through again, some with new work
            self._staged.clear()
        for listener in self._listeners:
            listener(event)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name the stage of the run; its start and end are written once for each effort."""
        self.status.stage = name
        self._mark_stage(name, "start")
        self.status.write(self.study, "running")
        yield
        self._mark_stage(name, "end")

    def _mark_stage(self, name: str, state: str) -> None:
        if (name, state) not in self._staged:
            self.record("stage", {"stage": name, "state": state})

    def progress(self, what: str, done: int, total: int) -> None:
        """Pass progress on to people and ``status.json``."""
        self.status.progress(self.study, what, done, total)
        self._progress(what, done, total)

    @property
    def wall_seconds(self) -> float:
        """Seconds that all sessions have spent on the run."""
        return self._before + self.journal.elapsed

    @property
    def search_seconds(self) -> float:
        """Seconds up to the end of the search in all earlier sessions, and all of this one."""
        return self._searched + self.journal.elapsed

    def plan(self, allocation: Allocation, stage: str, fidelity: Fidelity = Fidelity.HIGH, *,
             learning_rate: float | None = None, train_seed: int | None = None, split: str = "validation",
             length: int | None = None, codes: str | None = None) -> PlannedTrial:
        """Plan a trial; arguments that are not given are as in the search.

        This is where a trial gets its learning rate: the calibrated one, unless another is given. ``length`` is the
        steps of a full-fidelity trial with its schedule; ``codes="rtn"`` means round-to-nearest codes, ``None`` the
        configured ones.

        Raises:
            OracleError: If no learning rate is calibrated yet, or low fidelity has no length.
        """
        rate = self.study.learning_rate if learning_rate is None else learning_rate
        full = self.config.fidelity.high if length is None else length
        steps = self.config.fidelity.low if fidelity is Fidelity.LOW else full
        if rate is None or steps is None:
            raise OracleError(f"a {fidelity.value}-fidelity trial needs a calibrated learning rate ({rate}) and "
                              f"a length ({steps})")
        seed = self.setting.train_seed if train_seed is None else train_seed
        spec = TrialSpec(allocation, steps, full, seed, rate, split, codes=codes)
        return PlannedTrial(spec, fidelity, stage)

    def evaluate_all(self, planned: Sequence[PlannedTrial]) -> list[Trial]:
        """Return trials in their order: the journal's, whatever stage they were made for, or new ones, as many at once
        as there are workers."""
        for one in {p.spec.key: p for p in planned}.values():
            if one.spec.key not in self.study.by_key:
                self.submit(one)
        while self.under_way:
            self.next_finished()
        return [self.study.by_key[p.spec.key] for p in planned]

    def submit(self, planned: PlannedTrial) -> None:
        """Hand a trial to the executor; ``JournalError`` if earlier results would not compare with this oracle's."""
        self._describe()
        self.under_way[planned.spec.key] = planned
        self.executor.submit(planned.spec)

    def next_finished(self) -> Trial:
        """Wait for the next trial that ends, and write it down: the journal has trials in the order of their ends.

        Raises:
            OracleError: If a trial with a loss counted no tokens.
        """
        self._overhead += time.monotonic() - self._mark
        spec, result = self.executor.finished(self.progress)
        self._mark = time.monotonic()
        planned, a = self.under_way.pop(spec.key), spec.allocation
        trial = Trial(self.study.trials[-1].id + 1 if self.study.trials else 1, a,
                      tuple(parse_format(f).bits for f in a.formats), planned.stage, planned.fidelity, spec,
                      self.config.seed, self._checked(result, spec), self.setting.predictor(a))
        fields = {k: v for k, v in trial.to_json().items() if k != "event"}
        if self.executor.workers > 1:
            fields["workers"] = self.executor.workers
        self._append("trial", {**fields, "overhead_seconds": round(self._overhead, 4)})
        self._overhead = 0.0
        self.status.write(self.study, "running")
        return self.study.trials[-1]

    def forget_checkpoints(self) -> None:
        """Have those removed that no training continues: of trials that failed, and of all at their schedule's end."""
        over = {e.spec.training for e in self.study.trials if not e.ok or e.spec.steps == e.spec.schedule_steps}
        self.executor.call("forget", {"trainings": sorted(over)}, self.progress)

    def reset_stopwatch(self) -> None:
        """Leave the time until now out of the search's overhead."""
        self._mark = time.monotonic()

    def _checked(self, r: TrialResult, spec: TrialSpec) -> TrialResult:
        """Return the result with a loss that is not finite as a divergence, and a failure that has no token count
        charged in full, so that a search of failures ends too."""
        if r.state is TrialState.OK and (r.loss is None or not math.isfinite(r.loss)):
            r = replace(r, state=TrialState.DIVERGED, message=f"the loss is {r.loss}")
        tokens = r.training_tokens
        if r.state is TrialState.OK:
            if tokens + r.forward_tokens <= 0:
                raise OracleError(f"the oracle counted no tokens for {spec.key}: an effort could never be spent")
            return r
        if tokens == 0 and r.forward_tokens == 0:
            tokens = round(self.setting.full_trial_tokens * spec.steps / self.config.fidelity.high)
        curve = tuple(p for p in r.curve if math.isfinite(p[1]))
        return replace(r, loss=None, loss_se=None, curve=curve, training_tokens=tokens)


def _of_search(event: Mapping[str, Any]) -> bool:
    return event["event"] in ("profile", "calibration") or \
        (event["event"] == "trial" and event["stage"] not in UNSEARCHED_STAGES)


def no_loss(what: str, trials: Sequence[Trial]) -> QRABOError:
    """Return the error of a run that needs a loss and got none, with the last three reasons: a ``TrainingError`` where
    trainings diverged or ran out of memory, else a bug."""
    failed = [e.result for e in trials if not e.ok]
    reasons = "; ".join(list(dict.fromkeys(f"{r.state.value}: {r.message}" for r in failed))[-3:])
    if any(r.state is TrialState.FAILED for r in failed):
        return QRABOError(f"{what}; {reasons}")
    return TrainingError(f"{what}; {reasons}. Lower adapter.lr where trainings diverge; where memory ran out, lower "
                         "train.batch or the budget, or use a larger device")
