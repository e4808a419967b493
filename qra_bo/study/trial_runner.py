"""Trials of one session of a run: what the journal holds is replayed, what it lacks is evaluated and written down."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from qra_bo.config.resume import UNSAID, differences
from qra_bo.execution.base import Executor, ProfileResult
from qra_bo.memory.formats import parse_format
from qra_bo.memory.stored import stored_facts
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.searchers.rates.model import rates_sha256
from qra_bo.space import Allocation
from qra_bo.study.events import UNDER_WAY, Calibration, Event, FinishedTrial, Provenance, Stage, Warned
from qra_bo.study.header import Effort, Header
from qra_bo.study.journal import Journal, canonical, session_seconds
from qra_bo.study.lines import NAMES, Record, decode, encode
from qra_bo.study.provenance import changes, check_same_run, collect
from qra_bo.study.setting import Setting
from qra_bo.study.state import ENGINE_STAGES, UNSEARCHED_STAGES, Study
from qra_bo.study.status import SEARCHING, StatusFile
from qra_bo.trials import SCHEMA_VERSION, Fidelity, Trial, TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import ContractError, QRABOError, TrainingError
from qra_bo.utils.redact import redact
from qra_bo.utils.version import __version__

Listener = Callable[[Event], None]
"""Gets every event of a run's journal, those of earlier sessions first."""


MARK_SECONDS = 60.0
"""Seconds without an event after which progress writes one: a run that is killed loses no more of its time."""
SEARCHED_STAGES = frozenset(SEARCHING) - UNSEARCHED_STAGES


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """A trial that is asked for; ``stage`` is one of ``ENGINE_STAGES``, or the origin that a searcher gives it."""

    spec: TrialSpec
    fidelity: Fidelity
    stage: str


class TrialRunner:
    """Evaluates through the journal: each step of the (deterministic) engine that it holds is taken from there, so that
    a run that was killed goes on as if it had not been.

    Attributes:
        under_way: Trials that the executor has, by their keys.
        replay: Trials of the search that the journal holds and the search has not asked for yet, each with the number
            of workers when it was written, and the training tokens that the effort had left to spend.
    """

    def __init__(self, setting: Setting, budget_bytes: int, journal: Journal, executor: Executor,
                 listeners: Sequence[Listener] = (), progress: Progress = quiet) -> None:
        self.setting, self.config, self.budget_bytes = setting, setting.config, budget_bytes
        self.journal, self.executor = journal, executor
        self.study = Study()
        self.status = StatusFile(journal.path.parent, self._facts)
        self._listeners, self._progress = listeners, progress
        self._staged: set[Stage] = set()
        self._described = False
        self._mark, self._overhead = time.monotonic(), 0.0
        e = self.config.effort
        self._effort: dict[str, Any] = {
            "effort": e.name, "max_full_trials": e.max_full_trials, "planned_cost": setting.planned_cost,
            "uniform_baselines": e.uniform_baselines, "references": e.references}
        self.under_way: dict[str, PlannedTrial] = {}
        self._ended: dict[str, tuple[TrialSpec, TrialResult]] = {}  # before their turn
        self.replay: deque[tuple[Trial, int, float]] = deque()
        lines, of_search = journal.content.events, []
        for line in lines:
            spent, event = self.study.search_cost.tokens, decode(line)
            self._take_in(event)
            record = event.record
            if isinstance(record, FinishedTrial) and record.trial.stage not in ENGINE_STAGES:
                self.replay.append((record.trial, record.workers, self.study.planned_cost - spent))
            if isinstance(record, ProfileResult | Calibration) or \
                    (isinstance(record, FinishedTrial) and record.trial.stage not in UNSEARCHED_STAGES) or \
                    (isinstance(record, Stage) and record.state == UNDER_WAY and record.stage in SEARCHED_STAGES):
                of_search.append(line)
        self._searched = session_seconds(of_search)

    def begin(self) -> None:
        """Write the header of a new run, or check that the journal is of this one and note a changed effort. Raises
        ``JournalError`` if the journal belongs to another configuration."""
        c, s = self.config, self.setting
        now = Header(
            **self._effort, schema_version=SCHEMA_VERSION, config=c.to_journal(), config_sha256=c.config_sha256,
            version=__version__, seed=c.seed, train_seed=s.train_seed, model=c.model_name, granularity=c.granularity,
            units=tuple(u.name for u in s.space.units), formats=s.space.formats, ranks=s.space.ranks,
            unit_numel=tuple(int(n) for n in s.space.unit_numel), budget_bytes=self.budget_bytes,
            budget_text=str(c.budget[0]), max_average_bits=c.max_average_bits, scope=c.memory.scope,
            oracle=c.oracle.name, high_steps=c.fidelity.high, low_steps=c.fidelity.low,
            full_trial_tokens=s.full_trial_tokens, alpha_over_rank=c.adapter.alpha_over_rank,
            method=c.method.name, rates_sha256=rates_sha256(c.surrogate.rates), given=s.given,
            stored=stored_facts(s.memory.spec, s.space.units))
        if self.study.effort is None:
            self.record(now, describe=False)
        else:
            before = self.study.header
            check_same_run(self.journal.path, before, now)
            if self.study.planned_cost != now.planned_cost:
                self.record(Effort(**self._effort), describe=False)
            other = [f"{key} {old} -> {new}" for key, old, new in
                     differences(before.config, now.config, harmless=True) if key not in UNSAID]
            if other:
                self.warn(f"continued with settings that change no finished trial: {', '.join(other)}")
        for message in self.journal.content.warnings:
            self.warn(message)

    def record(self, record: Record, *, describe: bool = True) -> None:
        """Write one event; with ``describe`` the first of a session is preceded by its provenance."""
        if describe:
            self._describe()
        self._take_in(decode(self.journal.append(NAMES[type(record)], encode(record))))

    def conclude(self, record: Record) -> None:
        """Write one event, unless the journal's last event of that kind says the same."""
        if getattr(self.study, NAMES[type(record)]) != record:
            self.record(record)

    def warn(self, message: str) -> None:
        """Write a warning, once a run."""
        message = redact(message)
        if message not in self.study.warnings:
            self.record(Warned(message), describe=False)

    def _describe(self) -> None:
        """Write the provenance once a session, and warn of changes since the last one and of the oracle's notes. Raises
        ``JournalError`` if results before and after would not compare."""
        if self._described:
            return
        facts = json.loads(canonical({"command": list(self.config.words), **collect(self.executor.describe())}))
        before = self.study.provenance
        changed = changes(before, facts) if before else []
        self._described = True
        self.record(Provenance(facts))
        if changed:
            self.warn(f"since the run was last worked on: {'; '.join(changed)}; small differences in later results "
                      "may come from that")
        for note in facts.get("notes", ()):
            self.warn(note)

    def _take_in(self, event: Event) -> None:
        self.study.add(event)
        record = event.record
        if isinstance(record, Stage):
            self._staged.add(record)
        elif event.kind == "extension":  # the stages are gone through again, some with new work
            self._staged.clear()
        for listener in self._listeners:
            listener(event)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name the stage of the run; its start and end are written once for each effort."""
        self.status.stage = name
        self.status.write("running")  # first: caches keep what a run uses whose status is not "done"
        if (start := Stage(name, "start")) not in self._staged:
            self.record(start)
        elif Stage(name, "end") not in self._staged:
            self._describe()  # before anything is measured that would not compare
        yield
        if (end := Stage(name, "end")) not in self._staged:
            self.record(end)

    def progress(self, what: str, done: int, total: int) -> None:
        """Pass progress on to people and ``status.json``, and note in the journal that time passes."""
        if self.journal.elapsed - self.journal.last > MARK_SECONDS:
            self.mark_time()
        self.status.progress(what, done, total)
        self._progress(what, done, total)

    def mark_time(self) -> None:
        """Write down that the stage is under way: what it took until now counts, if the run stops before its end."""
        self.record(Stage(self.status.stage, UNDER_WAY), describe=False)

    def _facts(self) -> dict[str, Any]:
        """Return what ``status.json`` says of the study."""
        study = self.study
        return {"trials": study.states, "cost": study.cost.tokens, "search_cost": study.search_cost.tokens,
                "planned_cost": study.planned_cost,
                "best_loss": None if study.incumbent is None else study.incumbent.loss,
                "eta_seconds": study.eta_seconds if self.status.stage in SEARCHING else None}  # of the search

    @property
    def search_seconds(self) -> float:
        """Seconds up to the end of the search in all earlier sessions, and all of this one."""
        return self._searched + self.journal.elapsed

    def plan(self, allocation: Allocation, stage: str, fidelity: Fidelity = Fidelity.HIGH, *,
             learning_rate: float | None = None, train_seed: int | None = None, split: str = "validation",
             length: int | None = None, codes: str | None = None) -> PlannedTrial:
        """Plan a trial; arguments that are not given are as in the search.

        This is where a trial gets its learning rate: the calibrated one, unless another is given. ``length`` is the
        steps of a full-fidelity trial with its schedule; ``codes`` is as in ``TrialSpec``.
        """
        rate = self.study.learning_rate if learning_rate is None else learning_rate
        full = self.config.fidelity.high if length is None else length
        steps = self.config.fidelity.low if fidelity is Fidelity.LOW else full
        assert rate is not None  # no stage before the calibration plans a trial without one
        assert steps is not None  # ``SearchLoop`` refuses proposals at a fidelity that is off
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
        """Wait for the next trial that ends, and write it down: the journal has trials in the order of their ends, or
        where the executor is ``in_order`` of their submission. Raises ``ContractError`` as ``_checked``."""
        self._overhead += time.monotonic() - self._mark
        first = next(iter(self.under_way))
        try:
            while first not in self._ended if self.executor.in_order else not self._ended:
                spec, result = self.executor.finished(self.progress)
                self._ended[spec.key] = spec, result
        except BaseException:  # what ended before its turn is not trained again by the run that goes on
            for ended in self._ended.values():
                self._write_down(*ended)
            raise
        self._mark = time.monotonic()
        return self._write_down(*self._ended.pop(first if self.executor.in_order else next(iter(self._ended))))

    def _write_down(self, spec: TrialSpec, result: TrialResult) -> Trial:
        planned, a = self.under_way.pop(spec.key), spec.allocation
        trial = Trial(self.study.trials[-1].id + 1 if self.study.trials else 1, a,
                      tuple(parse_format(f).bits for f in a.formats), planned.stage, planned.fidelity, spec,
                      self.config.seed, self._checked(result, spec), self.setting.predictor(a))
        self.record(FinishedTrial(trial, round(self._overhead, 4), self.executor.workers), describe=False)
        self._overhead = 0.0
        self.status.write("running")
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
        if not (isinstance(r, TrialResult) and isinstance(r.loss, int | float | None)
                and {type(count) for count in (r.new_steps, r.training_tokens, r.forward_tokens)} == {int}):
            raise ContractError("evaluate must return a qra_bo.trials.TrialResult, its loss a number, its steps and "
                                f"tokens Python's int; got {r!r:.199}")
        if r.state is TrialState.OK and (r.loss is None or not abs(r.loss) <= 1e100):  # whose square is finite
            r = replace(r, state=TrialState.DIVERGED, message=f"the loss is {r.loss}")
        tokens = r.training_tokens
        if r.state is TrialState.OK:
            if tokens + r.forward_tokens <= 0:
                raise ContractError(f"the oracle counted no tokens for {spec.key}: an effort could never be spent")
            return r
        if tokens == 0 and r.forward_tokens == 0:
            tokens = round(self.setting.full_trial_tokens * spec.steps / self.config.fidelity.high)
        curve = tuple(p for p in r.curve if math.isfinite(p[1]))
        return replace(r, loss=None, loss_se=None, curve=curve, training_tokens=tokens)


def no_loss(what: str, trials: Sequence[Trial]) -> QRABOError:
    """Return the error of a run that needs a loss and got none, with the last three reasons: a ``TrainingError`` where
    trainings diverged or ran out of memory, else a bug."""
    failed = [e.result for e in trials if not e.ok]
    reasons = "; ".join(list(dict.fromkeys(f"{r.state.value}: {r.message}" for r in failed))[-3:])
    if any(r.state is TrialState.FAILED for r in failed):
        return QRABOError(f"{what}; {reasons}")
    return TrainingError(f"{what}; {reasons}. Lower adapter.lr where trainings diverge; where memory ran out, lower "
                         "train.batch or the budget, or use a larger device")
