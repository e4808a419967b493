"""An executor over several workers, which may die, hang or run out of memory without harm to the run."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from qra_bo.execution.base import Executor
from qra_bo.execution.jobs import Job, Jobs, Limits
from qra_bo.execution.messages import ProfileResult
from qra_bo.execution.worker_handle import WorkerHandle, WorkerLost, WorkerState
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.trials import TrialResult, TrialSpec
from qra_bo.utils.errors import QRABOError, WorkerError

log = logging.getLogger(__name__)
Handle = TypeVar("Handle", bound=WorkerHandle)


class PoolExecutor(Executor, Generic[Handle]):
    """Gives trials to workers; they start when there is work for them, and a lost one is replaced at the next trial.
    One thread listens to them all: no answer is waited for while another is there.

    Args:
        handles: The workers; the first also profiles, and makes the final fine-tune.
        limits: How long a worker may take.
    """

    def __init__(self, handles: Sequence[Handle], limits: Limits) -> None:
        self._workers, self._limits, self._jobs = tuple(handles), limits, Jobs(limits)
        self._running: dict[Handle, Job] = {}

    @property
    def workers(self) -> int:
        return len(self._workers)

    def describe(self) -> Mapping[str, Any]:
        return self._ask({"op": "describe"}, quiet)

    def profile(self, progress: Progress) -> ProfileResult:
        return ProfileResult.from_json(self._ask({"op": "profile"}, progress))

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        _end(self._workers[1:])  # the memory that they hold is needed now
        return self._ask({"op": "call", "method": method, "kwargs": dict(kwargs)}, progress)

    def submit(self, spec: TrialSpec) -> None:
        self._jobs.submit(spec)

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        while not self._jobs.done:
            self._dispatch()
            if self._running:
                self._listen(progress)
        return self._jobs.done.popleft()

    def close(self) -> None:
        """End the workers: those at work keep their trials on disk first; one that takes too long is killed."""
        _end(self._workers)

    @abstractmethod
    def _wait(self, workers: Sequence[Handle]) -> Sequence[Handle]:
        """Return those of ``workers`` that sent something; none once one of them is overdue."""

    def _memory_kills(self) -> int:
        """Return a count of workers that were killed for want of memory, where the machine keeps one."""
        return 0

    def _dispatch(self) -> None:
        """Give waiting trials to workers that have nothing to do, those with an oracle first."""
        free = sorted((w for w in self._workers if w not in self._running), key=lambda w: w.state is WorkerState.ABSENT)
        for worker in free[: len(self._jobs.waiting)]:
            job = self._jobs.waiting.popleft()
            job.kills = self._memory_kills()
            self._running[worker] = job
            try:
                worker.begin({"op": "evaluate", "spec": job.spec.to_json()}, self._jobs.allowed(job.spec))
            except WorkerLost as lost:
                self._lost(worker, lost)

    def _listen(self, progress: Progress) -> None:
        """Wait until a worker sends something or is overdue, and take it in."""
        busy = tuple(self._running)
        ready = self._wait(busy)
        for worker in busy:
            try:
                if worker not in ready:
                    worker.check(progress)
                elif (answer := worker.receive(progress)) is not None:
                    self._jobs.ended(self._running.pop(worker), TrialResult.from_json(answer))
            except WorkerLost as lost:
                self._lost(worker, lost)
            except QRABOError:
                del self._running[worker]
                raise

    def _lost(self, worker: Handle, lost: WorkerLost) -> None:
        """Begin the trial of a lost worker again, or make a failure of it.

        Raises:
            WorkerError: If its oracle was not built yet, time after time.
        """
        job, kills = self._running.pop(worker), self._memory_kills()
        starved = lost.starved or kills > job.kills
        if lost.building and (starved or job.tries >= self._limits.retries):
            raise _unbuilt(lost) from lost
        for other in self._running.values():  # a kill by the kernel counts for one trial, not for all that ran
            other.kills = kills
        self._jobs.lost(job, f"{lost}: the machine ran out of memory" if starved else str(lost), worker.done, starved)

    def _ask(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Return an answer of the first worker, which has nothing else to do; a lost one is asked again."""
        worker, tries, kills = self._workers[0], 0, self._memory_kills()
        while True:
            try:
                worker.begin(request)
                while True:
                    if worker not in self._wait((worker,)):
                        worker.check(progress)
                    elif (answer := worker.receive(progress)) is not None:
                        return answer
            except WorkerLost as lost:
                if lost.starved or self._memory_kills() > kills or tries >= self._limits.retries:
                    raise _unbuilt(lost) if lost.building else WorkerError(
                        f"the worker was lost before the oracle could answer {request['op']!r}: {lost}; run the same "
                        "command again to go on") from lost
                tries += 1
                log.warning("%s; another one is asked", lost)


def _end(workers: Sequence[WorkerHandle]) -> None:
    try:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join()
    finally:  # a second signal ends the wait
        for worker in workers:
            worker.kill()


def _unbuilt(lost: WorkerLost) -> WorkerError:
    return WorkerError(f"the worker was lost while it built the oracle: {lost}; if memory is short, free some, choose "
                       "a smaller model or fewer workers, and run the same command again")
