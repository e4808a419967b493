"""Evaluations in worker processes of this machine, which may die, hang or run out of memory without harm to the run."""

import logging
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from qra_bo.execution.base import Executor, OracleSpec
from qra_bo.execution.jobs import Job, Jobs
from qra_bo.execution.limits import Limits, Pace
from qra_bo.execution.messages import ProfileResult, result_from_json, spec_to_json
from qra_bo.execution.process import Worker, WorkerLost, WorkerState, out_of_memory_kills
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.trials import TrialResult, TrialSpec
from qra_bo.utils.errors import ConfigError, QRABOError, WorkerError

log = logging.getLogger(__name__)


class LocalExecutor(Executor):
    """Keeps one spawned worker process for every ``OracleSpec``; they start when there is work for them, and a lost one
    is replaced at the next request. One thread listens to them all: no answer is waited for while another is there.

    Args:
        specs: How each worker builds its oracle (they may differ in the device); the first also profiles, and makes
            the final fine-tune.
        limits: How long a worker may take.

    Raises:
        ConfigError: If there are none.
    """

    def __init__(self, specs: Sequence[OracleSpec], limits: Limits) -> None:
        if not specs:
            raise ConfigError("an executor needs at least one worker; got none")
        self._workers = tuple(Worker(spec, limits) for spec in specs)
        self._limits, self._pace = limits, Pace(limits)
        self._jobs = Jobs(limits)
        self._running: dict[Worker, Job] = {}

    @property
    def workers(self) -> int:
        return len(self._workers)

    def describe(self) -> Mapping[str, Any]:
        return self._must("describe", quiet)

    def profile(self, progress: Progress) -> ProfileResult:
        return ProfileResult.from_json(self._must("profile", progress))

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        self._close(self._workers[1:])  # what they hold is needed now
        return self._must("call", progress, method=method, kwargs=dict(kwargs))

    def submit(self, request: TrialSpec) -> None:
        self._jobs.submit(request)

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        while not self._jobs.done:
            self._dispatch()
            if self._running:
                self._listen(progress)
        return self._jobs.done.popleft()

    def close(self) -> None:
        """End the workers: those at work keep their evaluations on disk first; one that takes too long is killed."""
        self._close(self._workers)

    @staticmethod
    def _close(workers: Sequence[Worker]) -> None:
        try:
            for worker in workers:
                worker.stop()
            for worker in workers:
                worker.join()
        finally:  # a second signal ends the wait
            for worker in workers:
                worker.kill()

    def _dispatch(self) -> None:
        """Give what waits to workers that have nothing to do, those that have an oracle first."""
        free = sorted((w for w in self._workers if w not in self._running), key=lambda w: w.state is WorkerState.ABSENT)
        for worker in free[: len(self._jobs.waiting)]:
            job = self._jobs.waiting.popleft()
            job.kills = out_of_memory_kills()
            self._running[worker] = job
            try:
                worker.begin({"op": "evaluate", "request": spec_to_json(job.spec)},
                             self._pace.allowed(job.spec))
            except WorkerLost as lost:
                self._lost(worker, lost)

    def _listen(self, progress: Progress) -> None:
        """Wait until a worker says something or is overdue, and take it in."""
        busy = tuple(self._running)
        ready = _wait(busy)
        for worker in busy:
            try:
                if worker in ready:
                    answer = worker.receive(progress)
                else:
                    answer = None
                    worker.check(time.monotonic())
            except WorkerLost as lost:
                self._lost(worker, lost)
                continue
            except QRABOError:
                del self._running[worker]
                raise
            if answer is not None:
                measurement = result_from_json(answer)
                self._pace.note(measurement)
                self._jobs.done.append((self._running.pop(worker).spec, measurement))

    def _lost(self, worker: Worker, lost: WorkerLost) -> None:
        """Begin the evaluation of a lost worker again, or make a failure of it.

        Raises:
            WorkerError: If its oracle was not built yet, time after time.
        """
        job, kills = self._running.pop(worker), out_of_memory_kills()
        starved = kills > job.kills
        if lost.building and (starved or job.tries >= self._limits.retries):
            raise _unbuilt(lost) from lost
        for other in self._running.values():  # a kill by the kernel is told of one evaluation, not of all that ran
            other.kills = kills
        self._jobs.lost(job, f"{lost}: the machine ran out of memory" if starved else str(lost), worker.done, starved)

    def _must(self, op: str, progress: Progress, **fields: Any) -> dict[str, Any]:
        """An answer of the first worker, which has nothing else to do; a lost one is asked again."""
        worker, tries, kills = self._workers[0], 0, out_of_memory_kills()
        while True:
            try:
                worker.begin({"op": op, **fields})
                while True:
                    if _wait((worker,)):
                        answer = worker.receive(progress)
                        if answer is not None:
                            return answer
                    else:
                        worker.check(time.monotonic())
            except WorkerLost as lost:
                if out_of_memory_kills() > kills or tries >= self._limits.retries:
                    raise _unbuilt(lost) if lost.building else WorkerError(
                        f"the worker was lost before the oracle could answer {op!r}: {lost}; run the same command "
                        "again to go on") from lost
                tries += 1
                log.warning("%s; another one is asked", lost)


def _wait(workers: Sequence[Worker]) -> list[Worker]:
    """Those of ``workers`` that have something to say; none once one of them is overdue."""
    due = [w.due for w in workers if w.due is not None]
    timeout = max(0.0, min(due) - time.monotonic()) if due else None
    ready = wait([w.connection for w in workers], timeout)
    return [w for w in workers if w.connection in ready]


def _unbuilt(lost: WorkerLost) -> WorkerError:
    return WorkerError(f"the worker was lost while it built the oracle: {lost}; if memory is short, free some, choose "
                       "a smaller model or fewer workers, and run the same command again")
