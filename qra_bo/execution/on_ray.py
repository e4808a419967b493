"""Evaluations on Ray: actors on one machine or a cluster, each with an oracle of its own and one evaluation a task."""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qra_bo.execution.base import Executor, OracleSpec
from qra_bo.execution.jobs import Job, Jobs
from qra_bo.execution.limits import Limits, Pace, overdue, silent
from qra_bo.execution.messages import (
    ProfileResult,
    error_from_json,
    result_from_json,
    spec_to_json,
)
from qra_bo.execution.process import STOP_SECONDS
from qra_bo.execution.worker import error_body, resolve, serve
from qra_bo.oracle.protocol import TRAINING, Oracle, Progress, StopRequested, quiet
from qra_bo.trials import TrialResult, TrialSpec
from qra_bo.utils.errors import DeviceError, MissingExtraError, OracleError, WorkerError

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
"""How often workers that have not answered are asked how far they are."""
WORK, TALK = "work", "talk"
"""Two threads of an actor: one evaluates, the other says how far it is."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What one worker takes of the cluster; ``None`` leaves it to Ray.

    Args:
        cpus: Cores, and threads that it trains with.
        gpus: GPUs.
        memory: Bytes of the host.
    """

    cpus: float | None = None
    gpus: float | None = None
    memory: int | None = None

    def options(self) -> dict[str, float]:
        """As Ray names them."""
        named = {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory}
        return {k: v for k, v in named.items() if v is not None}

    def wanted(self) -> dict[str, float]:
        """As a cluster counts them."""
        named = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {k: float(v) for k, v in named.items() if v}


class RayWorker:
    """The actor: builds its oracle at the first request and answers in JSON, as a local worker process does.

    Args:
        target: ``"package.module:callable"`` that builds the oracle.
        kwargs: Its keyword arguments, as JSON.
    """

    def __init__(self, target: str, kwargs: str) -> None:
        self._target, self._kwargs = target, kwargs
        self._oracle: Oracle | None = None
        self._stop = threading.Event()
        self._said: tuple[int, str, int, int] = (0, "", 0, 0)
        self._steps = 0

    def serve(self, request: str) -> str:
        """Kind and body of the answer to one request; ``"stopped"`` where ``stop`` was called meanwhile."""
        try:
            if self._oracle is None:
                self._oracle = resolve(self._target)(**json.loads(self._kwargs))
        except Exception as error:
            return json.dumps({"kind": "unbuilt", "body": error_body(error)})
        self._said, self._steps = (self._said[0] + 1, "", 0, 0), 0
        try:
            kind, body = serve(self._oracle, json.loads(request), self)
        except StopRequested:
            kind, body = "stopped", {}
        return json.dumps({"kind": kind, "body": body})

    def __call__(self, what: str, done: int, total: int) -> None:
        """Progress."""
        if self._stop.is_set():
            raise StopRequested
        self._said = (self._said[0] + 1, what, done, total)
        if what == TRAINING:
            self._steps = done

    @property
    def done(self) -> int:
        return self._steps

    def heard(self) -> tuple[int, str, int, int]:
        """A number that grows with all progress, and the last that was made; 0 while the oracle is being built."""
        return self._said

    def stop(self) -> None:
        """Have what is being evaluated kept on disk and given up."""
        self._stop.set()


@dataclass(slots=True, eq=False)
class _Slot:
    """An actor and what it is doing."""

    actor: Any
    job: Job | None = None
    answer: Any = None
    heard: Any = None
    said: int = 0
    done: int = 0
    at: float = 0.0
    begun: float = 0.0
    allowed: float | None = field(default=None)


class RayExecutor(Executor):
    """One actor for every evaluation that may be under way; a lost one is replaced, wherever the cluster has room.

    Actors belong to this process: Ray ends them when it dies.

    Args:
        spec: How an actor builds its oracle.
        limits: How long a worker may take. Building is not limited: an actor may be waiting for its resources.
        workers: Evaluations under way at once.
        resources: What one actor takes.
        address: Of a running cluster; ``None`` starts Ray on this machine for this run alone.

    Raises:
        MissingExtraError: If Ray is not installed.
        DeviceError: If the cluster can't be reached, or no actor can ever find its resources there.
    """

    def __init__(self, spec: OracleSpec, limits: Limits, workers: int, resources: Resources,
                 address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "ray", "executor=ray") from error
        self._ray, self._spec, self._limits, self._resources = ray, spec, limits, resources
        self._workers, self._pace = workers, Pace(limits)
        self._slots: list[_Slot] = []
        self._jobs = Jobs(limits)
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise DeviceError(f"executor.address must name a Ray cluster that runs, or be null; {address!r} can't "
                                  f"be reached ({str(error).splitlines()[0]})") from error
        found = ray.cluster_resources()
        lacking = {k: v for k, v in resources.wanted().items() if v > found.get(k, 0.0)}
        if lacking:
            self.close()
            listed = ", ".join(f"{v:g} {k} (there are {found.get(k, 0.0):g})" for k, v in lacking.items())
            raise DeviceError(f"executor=ray: a worker takes {listed} of the whole cluster; lower executor.cpus, "
                              "executor.gpus or executor.memory, or add machines")

    @property
    def workers(self) -> int:
        return self._workers

    def describe(self) -> Mapping[str, Any]:
        return self._must({"op": "describe"}, quiet)

    def profile(self, progress: Progress) -> ProfileResult:
        return ProfileResult.from_json(self._must({"op": "profile"}, progress))

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        for slot in self._slots[1:]:
            self._bury(slot)
        return self._must({"op": "call", "method": method, "kwargs": dict(kwargs)}, progress)

    def submit(self, request: TrialSpec) -> None:
        self._jobs.submit(request)

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        while not self._jobs.done:
            self._dispatch()
            for slot, body in self._answers(progress):
                job = slot.job
                slot.job = None
                if job is None:
                    continue
                if isinstance(body, str):
                    self._lost(job, body, slot.done)
                else:
                    measurement = result_from_json(body)
                    self._pace.note(measurement)
                    self._jobs.done.append((job.spec, measurement))
        return self._jobs.done.popleft()

    def close(self) -> None:
        """End the actors: those at work keep their evaluations on disk first; one that takes too long is killed."""
        try:
            working = [s for s in self._slots if s.answer is not None]
            for slot in working:
                slot.actor.stop.options(concurrency_group=TALK).remote()
            if working:
                self._ray.wait([s.answer for s in working], num_returns=len(working), timeout=STOP_SECONDS)
        finally:  # a second signal ends the wait
            for slot in list(self._slots):
                self._bury(slot)
            if self._ours and self._ray.is_initialized():
                self._ray.shutdown()

    def _dispatch(self) -> None:
        """Give what waits to actors that have nothing to do, and start those that there may be more of."""
        while self._jobs.waiting:
            free = next((s for s in self._slots if s.answer is None), None)
            if free is None:
                if len(self._slots) >= self._workers:
                    return
                free = self._start()
            free.job = self._jobs.waiting.popleft()
            self._begin(free, {"op": "evaluate", "request": spec_to_json(free.job.spec)},
                        self._pace.allowed(free.job.spec))

    def _start(self) -> _Slot:
        options = {"max_restarts": 0, "concurrency_groups": {WORK: 1, TALK: 1}, **self._resources.options()}
        actor = self._ray.remote(**options)(RayWorker).remote(self._spec.target, self._spec.kwargs_json())
        self._slots.append(_Slot(actor))
        return self._slots[-1]

    @staticmethod
    def _begin(slot: _Slot, request: Mapping[str, Any], allowed: float | None) -> None:
        slot.answer = slot.actor.serve.options(concurrency_group=WORK).remote(json.dumps(request))
        slot.at = slot.begun = time.monotonic()
        slot.heard, slot.said, slot.done, slot.allowed = None, 0, 0, allowed

    def _answers(self, progress: Progress) -> list[tuple[_Slot, dict[str, Any] | str]]:
        """What ended since: the body of an answer, or why a worker counts as lost.

        Raises:
            QRABOError: What an oracle raised.
        """
        busy = [s for s in self._slots if s.answer is not None]
        ready, _ = self._ray.wait([s.answer for s in busy], timeout=POLL_SECONDS)
        ended: list[tuple[_Slot, dict[str, Any] | str]] = []
        for slot in busy:
            if slot.answer in ready:
                ended.append((slot, self._answer(slot)))
            elif (why := self._hung(slot, progress)) is not None:
                self._bury(slot)
                ended.append((slot, why))
        return ended

    def _answer(self, slot: _Slot) -> dict[str, Any] | str:
        errors = self._ray.exceptions
        try:
            message = json.loads(self._ray.get(slot.answer))
        except (errors.RayActorError, errors.OutOfMemoryError, errors.ObjectLostError, errors.RaySystemError) as error:
            self._bury(slot)
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"worker lost: {type(error).__name__}: {first}"
        except errors.RayTaskError as error:
            raise OracleError(f"a worker on Ray broke: {error}") from error
        slot.answer = None
        if message["kind"] == "result":
            body: dict[str, Any] = message["body"]
            return body
        if message["kind"] == "unbuilt":
            self._bury(slot)
        raise error_from_json(message["body"], str(message["body"]["trace"]))

    def _hung(self, slot: _Slot, progress: Progress) -> str | None:
        """Pass progress on; why the worker counts as hung, if it does."""
        now = time.monotonic()
        if slot.heard is None:
            slot.heard = slot.actor.heard.options(concurrency_group=TALK).remote()
        elif self._ray.wait([slot.heard], timeout=0)[0]:
            try:
                said, what, done, total = self._ray.get(slot.heard)
            except self._ray.exceptions.RayError:
                return None  # it is gone, which its answer will say
            slot.heard = None
            if said == 0:  # it waits for its resources, or builds
                slot.at = slot.begun = now
            elif said != slot.said:
                slot.said, slot.at = said, now
                if what == TRAINING:
                    slot.done = done
                if what:
                    progress(what, done, total)
        elif slot.said == 0:
            slot.at = slot.begun = now
        silence = self._limits.silence
        if silence is not None and now - slot.at > silence:
            return f"worker lost: {silent(silence)}"
        if slot.allowed is not None and now - slot.begun > slot.allowed:
            return f"worker lost: {overdue(slot.allowed)}"
        return None

    def _bury(self, slot: _Slot) -> None:
        if slot in self._slots:
            self._slots.remove(slot)
            self._ray.kill(slot.actor, no_restart=True)
        slot.answer = None

    def _lost(self, job: Job, why: str, done: int) -> None:
        self._jobs.lost(job, why, done, "OutOfMemory" in why or "OOM" in why)

    def _must(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """An answer of one actor, which has nothing else to do; a lost one is asked again."""
        why = ""
        for _ in range(1 + self._limits.retries):
            slot = self._slots[0] if self._slots else self._start()
            self._begin(slot, request, None)
            body: dict[str, Any] | str | None = None
            while body is None:
                body = next((b for s, b in self._answers(progress) if s is slot), None)
            if not isinstance(body, str):
                return body
            why = body
        raise WorkerError(f"the worker was lost before the oracle could answer {request['op']!r}: {why}; run the same "
                          "command again to go on")
