"""One oracle for several runs: what a sibling run has evaluated is taken from its journal, at the same charge."""

import json
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qra_bo.execution.base import Executor
from qra_bo.execution.messages import ProfileResult
from qra_bo.oracle.protocol import Progress
from qra_bo.study.journal import JOURNAL_NAME, canonical
from qra_bo.study.provenance import INCOMPARABLE
from qra_bo.study.results import load_study
from qra_bo.study.state import Study
from qra_bo.trials import Trial, TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import JournalError

log = logging.getLogger(__name__)
SHAREABLE = (TrialState.OK, TrialState.DIVERGED)
"""Ends that another run would meet too; a lost worker or a lack of memory may have been this one's bad luck."""
Training = tuple[str, int, int, float, str | None, str | None]


def training_of(request: TrialSpec) -> Training:
    """Names the training that a request is a part of: its low fidelity is a prefix of its high one."""
    return (request.allocation.fingerprint, request.schedule_steps, request.train_seed, request.lr_scale,
            request.init, request.codes)


class Ledger:
    """Evaluations of one run, each with what it costs from the first step on, whatever prefix was there already."""

    def __init__(self, evaluations: Iterable[Trial] = ()) -> None:
        self.by_key: dict[str, TrialResult] = {}
        self._prefixes: dict[tuple[Training, int], TrialResult] = {}
        for e in evaluations:
            if e.result.state in SHAREABLE:
                self.add(e.spec, e.result)

    def add(self, request: TrialSpec, charged: TrialResult) -> None:
        """Note an evaluation as this run was charged for it; one whose beginning is unknown is left out."""
        if charged.state is TrialState.OK:
            done = request.steps - charged.new_steps
            before = self.prefix(request, done) if done > 0 else None
            if done > 0 and before is None:
                return
            charged = charged if before is None else combined(charged, before, 1)
            self._prefixes[training_of(request), request.steps] = charged
        self.by_key[request.key] = charged

    def prefix(self, request: TrialSpec, steps: int) -> TrialResult | None:
        """The same training up to ``steps``, if this run evaluated it."""
        return self._prefixes.get((training_of(request), steps))

    def longest_prefix(self, request: TrialSpec) -> TrialResult | None:
        """The longest part of the request's training that this run evaluated before."""
        own = [(steps, m) for (training, steps), m in self._prefixes.items()
               if training == training_of(request) and steps < request.steps]
        return max(own, key=lambda pair: pair[0])[1] if own else None


def combined(m: TrialResult, prefix: TrialResult, sign: int) -> TrialResult:
    """``m`` with the cost of a prefix added (``sign`` 1) or taken off (-1)."""
    return replace(m, new_steps=m.new_steps + sign * prefix.new_steps,
                   training_tokens=m.training_tokens + sign * prefix.training_tokens,
                   forward_tokens=m.forward_tokens + sign * prefix.forward_tokens,
                   seconds=max(0.0, m.seconds + sign * prefix.seconds))


class SharedExecutor(Executor):
    """An executor that asks the journals of sibling runs first.

    Every run is charged as if it had been alone: what a sibling trained and this run uses costs this run the same
    tokens, less the prefix that it has been charged for already. It stays open when its run ends: who made ``inner``
    closes it.

    Args:
        inner: Runs the oracle.
        folder: Of this run.
        siblings: Folders of the other runs; those without a journal, and those of another configuration, data or
            compute type are passed over.
        config: This run's configuration, JSON values.
        may_differ: Top-level keys of the configuration that may differ: the budget, and what changes no evaluation.
        formats: Of this run, where ``inner`` has others too.
    """

    def __init__(self, inner: Executor, folder: Path, siblings: Sequence[Path], config: Mapping[str, Any],
                 may_differ: frozenset[str], formats: Sequence[str] | None = None) -> None:
        self._formats = formats
        self._inner, self._folder, self._siblings = inner, folder, tuple(siblings)
        self._may_differ = may_differ
        self._wanted = self._identity(config)
        self._opened: tuple[Ledger, tuple[Study, ...], tuple[Ledger, ...]] | None = None
        self._waiting: deque[TrialSpec] = deque()
        self._under_way = 0

    @property
    def workers(self) -> int:
        return self._inner.workers

    def describe(self) -> Mapping[str, Any]:
        return self._inner.describe()

    def profile(self, progress: Progress) -> ProfileResult:
        shared = next((s.last["profile"] for s in self._open()[1] if "profile" in s.last), None)
        found = self._inner.profile(progress) if shared is None else ProfileResult.from_json(shared)
        return found if self._formats is None else replace(found, profile=found.profile.of_formats(self._formats))

    def submit(self, request: TrialSpec) -> None:
        self._waiting.append(request)

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        own, _, others = self._open()
        shared = None
        while shared is None and self._waiting and self._under_way < self._inner.workers:
            request = self._waiting.popleft()
            shared = next((ledger.by_key[request.key] for ledger in others if request.key in ledger.by_key), None)
            if shared is None:
                self._inner.submit(request)
                self._under_way += 1
        if shared is not None:
            progress("shared", request.steps, request.steps)
            prefix = own.longest_prefix(request) if shared.state is TrialState.OK else None
            charged = shared if prefix is None else combined(shared, prefix, -1)
        else:
            request, measurement = self._inner.finished(progress)
            self._under_way -= 1
            charged = self._charged(request, measurement, own, others)
        if charged.state in SHAREABLE:
            own.add(request, charged)
        return request, charged

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        return self._inner.call(method, kwargs, progress)

    def close(self) -> None:
        """Nothing: the next run needs the oracle."""

    @staticmethod
    def _charged(request: TrialSpec, m: TrialResult, own: Ledger, others: Sequence[Ledger]) -> TrialResult:
        """A new measurement with the prefix that a sibling trained and this run never paid for."""
        done = request.steps - m.new_steps
        if m.state is not TrialState.OK or done <= 0 or own.prefix(request, done) is not None:
            return m
        prefix = next((p for p in (ledger.prefix(request, done) for ledger in others) if p is not None), None)
        return m if prefix is None else combined(m, prefix, 1)

    def _identity(self, config: Mapping[str, Any]) -> str:
        kept = {k: v for k, v in json.loads(json.dumps(config)).items() if k not in self._may_differ}
        return canonical(kept)

    def _open(self) -> tuple[Ledger, tuple[Study, ...], tuple[Ledger, ...]]:
        """This run's own ledger, and siblings' journals as they are when this run first needs them."""
        if self._opened is None:
            mine = _study(self._folder)
            facts = self._inner.describe()
            studies = [s for s in map(_study, self._siblings) if s is not None and self._comparable(s, facts)]
            self._opened = (Ledger(mine.trials if mine is not None else ()), tuple(studies),
                            tuple(Ledger(s.trials) for s in studies))
        return self._opened

    def _comparable(self, study: Study, facts: Mapping[str, Any]) -> bool:
        stored = study.last.get("provenance")
        if stored is None or self._identity(study.header["config"]) != self._wanted:
            return False
        plain = json.loads(canonical(facts))
        return all(stored.get(key) == plain.get(key) for key in INCOMPARABLE)


def _study(folder: Path) -> Study | None:
    """The state of a run, or ``None`` where there is none that can be read; its own turn will say why."""
    if not (folder / JOURNAL_NAME).is_file():
        return None
    try:
        return load_study(folder)
    except JournalError as error:
        log.warning("nothing is shared with the run in %s: %s", folder, error)
        return None
