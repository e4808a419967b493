"""One oracle for several runs: a trial of a sibling run is taken from its journal, at the same charge."""

import json
import logging
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qra_bo.execution.base import Executor, ProfileResult
from qra_bo.oracle.protocol import Progress
from qra_bo.study.journal import JOURNAL_NAME, canonical
from qra_bo.study.provenance import INCOMPARABLE
from qra_bo.study.results import load_study
from qra_bo.study.state import Study
from qra_bo.trials import Trial, TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import JournalError

log = logging.getLogger(__name__)
SHAREABLE = (TrialState.OK, TrialState.DIVERGED)
"""States that another run would reach too; a lost worker or a lack of memory may have been bad luck."""


def training_of(spec: TrialSpec) -> tuple[Any, ...]:
    """Return the identity of a trial's training, whatever its steps: a low fidelity is a prefix of the high one."""
    return (spec.allocation.fingerprint, spec.schedule_steps, spec.train_seed, spec.learning_rate, spec.init,
            spec.codes)


class Ledger:
    """Trials of one run, each with its cost from the first step on, whatever prefix was there already."""

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        self.by_key: dict[str, TrialResult] = {}
        self._prefixes: dict[tuple[tuple[Any, ...], int], TrialResult] = {}
        for e in trials:
            if e.result.state in SHAREABLE:
                self.add(e.spec, e.result)

    def add(self, spec: TrialSpec, charged: TrialResult) -> None:
        """Note a trial as this run was charged for it; one whose beginning is unknown is left out."""
        if charged.state is TrialState.OK:
            done = spec.steps - charged.new_steps
            before = self.prefix(spec, done) if done > 0 else None
            if done > 0 and before is None:
                return
            charged = charged if before is None else combined(charged, before, 1)
            self._prefixes[training_of(spec), spec.steps] = charged
        self.by_key[spec.key] = charged

    def prefix(self, spec: TrialSpec, steps: int) -> TrialResult | None:
        """Return the same training up to ``steps``, if this run evaluated it."""
        return self._prefixes.get((training_of(spec), steps))

    def longest_prefix(self, spec: TrialSpec) -> TrialResult | None:
        """Return the longest part of the trial's training that this run evaluated before."""
        known = [steps for training, steps in self._prefixes if training == training_of(spec) and steps < spec.steps]
        return self.prefix(spec, max(known)) if known else None


def combined(m: TrialResult, prefix: TrialResult, sign: int) -> TrialResult:
    """Return ``m`` with the cost of a prefix added (``sign`` 1) or taken off (-1)."""
    return replace(m, new_steps=m.new_steps + sign * prefix.new_steps,
                   training_tokens=m.training_tokens + sign * prefix.training_tokens,
                   forward_tokens=m.forward_tokens + sign * prefix.forward_tokens,
                   seconds=max(0.0, m.seconds + sign * prefix.seconds))


class SharedExecutor(Executor):
    """An executor that takes trials from the journals of sibling runs first.

    Every run is charged as if it had been alone: a sibling's training that this run uses costs this run the same
    tokens, less the prefix that it has been charged for already. ``inner`` stays open when a run ends: its maker closes
    it.

    Args:
        inner: Runs the oracle.
        folder: Of this run.
        siblings: Folders of the other runs; those without a journal, and those of another configuration, data or
            compute type are passed over.
        config: This run's configuration, JSON values.
        may_differ: Top-level keys of the configuration that may differ: the budget, and keys that change no trial.
    """

    def __init__(self, inner: Executor, folder: Path, siblings: Sequence[Path], config: Mapping[str, Any],
                 may_differ: Collection[str]) -> None:
        self._inner, self._folder, self._siblings = inner, folder, tuple(siblings)
        self._may_differ = may_differ
        self._wanted = self._identity(config)
        self._waiting: deque[TrialSpec] = deque()
        self._under_way = 0

    @property
    def workers(self) -> int:
        return self._inner.workers

    def describe(self) -> Mapping[str, Any]:
        return self._inner.describe()

    def profile(self, progress: Progress) -> ProfileResult:
        shared = next((s.last["profile"] for s in self._journals[1] if "profile" in s.last), None)
        return self._inner.profile(progress) if shared is None else ProfileResult.from_json(shared)

    def submit(self, spec: TrialSpec) -> None:
        self._waiting.append(spec)

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        own, _, others = self._journals
        shared = None
        while shared is None and self._waiting and self._under_way < self._inner.workers:
            spec = self._waiting.popleft()
            shared = next((ledger.by_key[spec.key] for ledger in others if spec.key in ledger.by_key), None)
            if shared is None:
                self._inner.submit(spec)
                self._under_way += 1
        if shared is not None:
            progress("shared", spec.steps, spec.steps)
            prefix = own.longest_prefix(spec) if shared.state is TrialState.OK else None
            charged = shared if prefix is None else combined(shared, prefix, -1)
        else:
            spec, result = self._inner.finished(progress)
            self._under_way -= 1
            charged = self._charged(spec, result, own, others)
        if charged.state in SHAREABLE:
            own.add(spec, charged)
        return spec, charged

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        return self._inner.call(method, kwargs, progress)

    def abandon(self) -> None:
        self._waiting.clear()
        self._inner.abandon()
        self._under_way = 0

    def close(self) -> None:
        """Give up this run's trials, which an error may have left under way; the next run needs the oracle."""
        self.abandon()

    @staticmethod
    def _charged(spec: TrialSpec, m: TrialResult, own: Ledger, others: Sequence[Ledger]) -> TrialResult:
        """Return a new result with the prefix that a sibling trained and this run was never charged for."""
        done = spec.steps - m.new_steps
        if m.state is not TrialState.OK or done <= 0 or own.prefix(spec, done) is not None:
            return m
        prefix = next((p for p in (ledger.prefix(spec, done) for ledger in others) if p is not None), None)
        return m if prefix is None else combined(m, prefix, 1)

    def _identity(self, config: Mapping[str, Any]) -> str:
        return canonical({k: v for k, v in config.items() if k not in self._may_differ})

    @cached_property
    def _journals(self) -> tuple[Ledger, list[Study], list[Ledger]]:
        """This run's own ledger, and siblings' journals and ledgers as they are when this run first needs them."""
        mine, facts = _study(self._folder), json.loads(canonical(self._inner.describe()))
        siblings = [s for s in map(_study, self._siblings) if s is not None and self._comparable(s, facts)]
        return Ledger(() if mine is None else mine.trials), siblings, [Ledger(s.trials) for s in siblings]

    def _comparable(self, study: Study, facts: Mapping[str, Any]) -> bool:
        stored = study.last.get("provenance")
        return stored is not None and self._identity(study.header["config"]) == self._wanted \
            and all(stored.get(key) == facts.get(key) for key in INCOMPARABLE)


def _study(folder: Path) -> Study | None:
    """Return the state of a run, or ``None`` where there is none that can be read."""
    if not (folder / JOURNAL_NAME).is_file():
        return None
    try:
        return load_study(folder)
    except JournalError as error:
        log.warning("nothing is shared with the run in %s: %s", folder, error)
        return None
