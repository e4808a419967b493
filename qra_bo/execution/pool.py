"""Handles of workers, which may die, hang or run out of memory without harm to the run, and the executor over them."""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from qra_bo.execution.base import Executor, failure
from qra_bo.oracle.protocol import TRAINING, Progress, activity, quiet
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import QRABOError, WorkerError

log = logging.getLogger(__name__)
STOP_SECONDS = 20.0
"""How long a worker at work may take to end, at its next step and with the trial kept on disk, before it is killed:
then the run goes on from the last checkpoint."""
POLL_SECONDS = 0.5
"""Longest time between two looks at the workers. Where more has passed, this process was stopped for the rest."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a worker may take, in seconds in which both it and this process were running.

    Neither a stop of the run (Ctrl-Z, a scheduler's suspension, a laptop asleep) nor a stop of a worker counts.

    Args:
        silence: Longest time with neither progress nor an answer, in seconds; then it counts as hung and is killed.
            ``None`` waits for ever.
        startup: As ``silence``, while the worker builds its oracle.
        retries: How often a trial whose worker died or hung is begun again on another one (from its checkpoint). One
            that ran the machine out of memory is never repeated.
    """

    silence: float | None
    startup: float | None = None
    retries: int = 0


class WorkerLost(Exception):
    """A worker died or hung.

    Args:
        message: How it ended, e.g. its exit status.
        building: Whether it was building its oracle then, so that no trial is to blame.
        starved: Whether it is known to have run out of the machine's memory; such a trial is not repeated.
    """

    def __init__(self, message: str, building: bool = False, starved: bool = False) -> None:
        super().__init__(f"worker lost: {message}")
        self.building, self.starved = building, starved


class WorkerState(Enum):
    """What a worker does; ``absent``: it has no process yet, or lost it."""

    ABSENT = "absent"
    BUILDING = "building"
    IDLE = "idle"
    WORKING = "working"


class WorkerHandle(ABC):
    """A worker with an oracle, started at its first request and again after it was lost.

    Attributes:
        state: What the worker does now.
        done: Optimiser steps of the current trial so far.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._silent = 0.0
        self.state = WorkerState.ABSENT
        self.done = 0

    @abstractmethod
    def begin(self, request: Mapping[str, Any]) -> None:
        """Hand over a request and return at once.

        Raises ``WorkerLost`` if the worker dies at that very moment.

        Args:
            request: JSON values; ``op`` is ``"evaluate"`` or ``"call"``.
        """

    @abstractmethod
    def receive(self, progress: Progress) -> dict[str, Any] | None:
        """Take in one message; return the answer, or ``None`` where it was no answer yet. Raises ``WorkerLost`` if the
        worker died or is silent for too long, and the oracle's own ``QRABOError``."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to end, with its trial kept on disk."""

    @abstractmethod
    def join(self, seconds: float) -> None:
        """Wait for it to end: ``seconds`` at most where it is at work."""

    @abstractmethod
    def kill(self) -> None:
        """End it now, if it has not ended; it may be called twice."""

    def check(self, progress: Progress) -> None:
        """End the worker and raise ``WorkerLost`` if it was silent for so long that it counts as hung."""
        silence = self._silence
        if silence is not None and self._silent >= silence:
            building = self.state is WorkerState.BUILDING
            self.kill()
            raise WorkerLost(f"it was silent for more than {silence:g} s and counts as hung", building)

    def spend(self, seconds: float) -> None:
        """Count seconds in which this process waited and the worker was running."""
        self._silent += seconds

    @property
    def left(self) -> float:
        """Seconds after which it counts as hung; infinite for never."""
        return math.inf if self._silence is None else max(0.0, self._silence - self._silent)

    @property
    def _silence(self) -> float | None:
        return self._limits.startup if self.state is WorkerState.BUILDING else self._limits.silence

    def _started(self, state: WorkerState) -> None:
        """Enter ``state`` and start its count of seconds."""
        self.state = state
        self._silent = 0.0

    def _progressed(self, what: str, done: int, total: int, progress: Progress) -> None:
        """Pass progress on."""
        self._silent = 0.0
        if activity(what) == TRAINING:
            self.done = done
        progress(what, done, total)


@dataclass(slots=True)
class Job:
    """One request, of a trial where it has a ``spec``: when it was first begun (monotonic seconds), how often it was
    begun again, how many processes the kernel had killed for want of memory then, and if its progress is shown."""

    request: Mapping[str, Any]
    spec: TrialSpec | None = None
    begun: float = 0.0
    tries: int = 0
    kills: int = 0
    shown: bool = True


Handle = TypeVar("Handle", bound=WorkerHandle)


class PoolExecutor(Executor, Generic[Handle]):
    """Gives requests to workers; they start when there is work for them, and a lost one is replaced at the next one.

    One thread listens to them all: no answer is waited for while another is there. What is no trial goes to a worker
    that has built its oracle, if any has.
    """

    def __init__(self, handles: Sequence[Handle], limits: Limits) -> None:
        self._workers, self._limits, self.workers = tuple(handles), limits, len(handles)
        self._waiting: deque[Job] = deque()
        self._running: dict[Handle, Job] = {}
        self._done: deque[tuple[TrialSpec, TrialResult]] = deque()
        self._answer: dict[str, Any] | None = None

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress, workers: int = 1) -> Mapping[str, Any]:
        """See ``Executor.call``. Each of several workers gets ``share``: its ``number``, of how many (``size``), and an
        empty ``folder`` to meet in when all have an oracle. The first alone answers, and its progress is shown."""
        _end(self._workers[workers:])  # the memory that they hold is needed now
        request = {"op": "call", "method": method, "kwargs": dict(kwargs)}
        if workers == 1:
            return self._answered([Job(request)], progress)
        described = {**request, "method": "qra_bo.execution.base:describe", "kwargs": {}}
        self._answered([Job(described) for _ in range(workers)], quiet)  # each counts its own tries
        with TemporaryDirectory(prefix="qra_bo-") as folder:
            return self._answered([
                Job({**request, "kwargs": {**kwargs, "share": {"number": i, "size": workers, "folder": folder}}},
                    tries=self._limits.retries, shown=i == 0) for i in range(workers)], progress)

    def _answered(self, jobs: Sequence[Job], progress: Progress) -> dict[str, Any]:
        """Return the answer to calls that workers share. The error of one ends all: they may wait for it for ever."""
        self._waiting.extend(jobs)
        try:
            while self._answer is None or self._running:
                self._work(progress)
            return self._answer
        except QRABOError:
            for worker in self._workers if jobs[1:] else ():
                worker.kill()
            self._running.clear()
            self._waiting.clear()
            raise
        finally:
            self._answer = None

    def submit(self, spec: TrialSpec) -> None:
        self._waiting.append(Job({"op": "evaluate", "spec": spec.to_json()}, spec))

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        while not self._done:
            self._work(progress)
        return self._done.popleft()

    def close(self) -> None:
        """End the workers: those at work keep their trials on disk first; one that takes too long is killed."""
        _end(self._workers)

    @abstractmethod
    def _wait(self, workers: Sequence[Handle]) -> Sequence[Handle]:
        """Return those of ``workers`` that sent something, after ``POLL_SECONDS`` at most and none earlier than there
        is one, or one of them counts as hung."""

    def _memory_kills(self) -> int:
        """Return a count of workers that were killed for want of memory, where the machine keeps one."""
        return 0

    def _dispatch(self) -> None:
        """Give waiting requests to workers that have nothing to do, those with an oracle first."""
        free = sorted((w for w in self._workers if w not in self._running), key=lambda w: w.state is WorkerState.ABSENT)
        for worker in free[: len(self._waiting)]:
            job = self._waiting.popleft()
            job.begun, job.kills = job.begun or time.monotonic(), self._memory_kills()
            self._running[worker] = job
            try:
                worker.begin(job.request)
            except WorkerLost as lost:
                self._lost(worker, lost)

    def _work(self, progress: Progress) -> None:
        """Give out waiting requests, wait until a worker sends something or counts as hung, and take it in."""
        self._dispatch()
        busy, start = tuple(self._running), time.monotonic()
        ready = self._wait(busy) if busy else ()
        for worker in busy:
            worker.spend(min(time.monotonic() - start, POLL_SECONDS))
        for worker in busy:
            try:
                if worker not in ready:
                    worker.check(progress)
                elif (answer := worker.receive(progress if self._running[worker].shown else quiet)) is not None:
                    job = self._running.pop(worker)
                    if job.spec is None:
                        self._answer = {**(self._answer or {}), **answer}
                    else:
                        self._done.append((job.spec, TrialResult.from_json(answer)))
            except WorkerLost as lost:
                self._lost(worker, lost)
            except QRABOError:
                del self._running[worker]
                raise

    def _lost(self, worker: Handle, lost: WorkerLost) -> None:
        """Begin the request of a lost worker again, before all that wait, or make a failure of its trial. Raises
        ``WorkerError`` if its oracle was not built yet, time after time, or if it is no trial."""
        job, kills = self._running.pop(worker), self._memory_kills()
        starved = lost.starved or kills > job.kills
        for other in self._running.values():  # a kill by the kernel counts for one trial, not for all that ran
            other.kills = kills
        if not starved and job.tries < self._limits.retries:
            job.tries += 1
            log.warning("%s; what it did is begun again on another one", lost)
            self._waiting.appendleft(job)
        elif lost.building:
            raise WorkerError(f"the worker was lost while it built the oracle: {lost}; if memory is short, free some, "
                              "choose a smaller model or fewer workers, and run the same command again") from lost
        elif job.spec is None:
            name = job.request["method"].rpartition(":")[2]
            raise WorkerError(f"the worker was lost during {name!r}: {lost}; run the same command again") from lost
        else:
            why = f"{lost}: the machine ran out of memory" if starved else str(lost)
            log.warning("a trial was lost: %s; another worker is started for the next one", why)
            state = TrialState.OOM if starved else TrialState.FAILED
            self._done.append((job.spec, failure(state, why, worker.done, time.monotonic() - job.begun)))


def _end(workers: Sequence[WorkerHandle]) -> None:
    try:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join(STOP_SECONDS)
    finally:  # a second signal ends the wait
        for worker in workers:
            worker.kill()
