"""Trials on Ray: actors on one machine or a cluster, each with an oracle of its own and one trial a task."""

import json
import logging
import pkgutil
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from qra_bo.execution.base import OracleSpec
from qra_bo.execution.pool import POLL_SECONDS, Limits, PoolExecutor, WorkerHandle, WorkerLost, WorkerState
from qra_bo.execution.worker import Reporter, error_body, error_from_body, serve
from qra_bo.oracle.protocol import Oracle, Progress, StopRequested
from qra_bo.utils.errors import ContractError, DeviceError, MissingExtraError

WORK, TALK = "work", "talk"
"""Two threads of an actor: one evaluates, the other reports progress."""
RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
"""Resources of an actor by their options, with their names in a cluster: cores (its threads in training too), GPUs, and
bytes of the host."""


class RayWorker:
    """The actor: builds its oracle (of an ``OracleSpec``'s target and JSON arguments) at the first request and answers
    in JSON, as a local worker process does."""

    def __init__(self, target: str, kwargs: str) -> None:
        self._target, self._kwargs = target, kwargs
        self._oracle: Oracle | None = None
        self._stop = threading.Event()
        self._said: tuple[int, str, int, int] = (0, "", 0, 0)

    def serve(self, request: str) -> str:
        """Return kind and body of the answer to one request; ``"stopped"`` where ``stop`` was called meanwhile."""
        try:
            if self._oracle is None:
                self._oracle = pkgutil.resolve_name(self._target)(**json.loads(self._kwargs))
        except Exception as error:
            return json.dumps({"kind": "unbuilt", "body": error_body(error)})
        self._note("", 0, 0)
        try:
            kind, body = serve(self._oracle, json.loads(request), Reporter(self._note, self._stop.is_set))
        except StopRequested:
            kind, body = "stopped", {}
        return json.dumps({"kind": kind, "body": body})

    def _note(self, what: str, done: int, total: int) -> None:
        self._said = (self._said[0] + 1, what, done, total)

    def heard(self) -> tuple[int, str, int, int]:
        """Return a number that grows with all progress, and the last progress; 0 while the oracle is being built."""
        return self._said

    def stop(self) -> None:
        """Have the trial kept on disk and given up."""
        self._stop.set()


class ActorHandle(WorkerHandle):
    """Non-blocking handle of one actor; building is not limited, for an actor may be waiting for its resources."""

    def __init__(self, ray: Any, spec: OracleSpec, limits: Limits, resources: Mapping[str, float]) -> None:
        super().__init__(limits)
        self._ray, self._spec, self._resources = ray, spec, resources
        self._actor: Any = None
        self._heard_ref: Any = None
        self._said = 0
        self.answer: Any = None

    def begin(self, request: Mapping[str, Any]) -> None:
        if self._actor is None:
            options = {"max_restarts": 0, "concurrency_groups": {WORK: 1, TALK: 1}, **self._resources}
            made = self._ray.remote(**options)(RayWorker)
            self._actor = made.remote(self._spec.target, json.dumps(self._spec.kwargs))
        self.answer = self._actor.serve.options(concurrency_group=WORK).remote(json.dumps(request))
        self._heard_ref, self._said, self.done = None, 0, 0
        self._started(WorkerState.WORKING)

    def receive(self, progress: Progress) -> dict[str, Any] | None:
        errors = self._ray.exceptions
        try:
            message = json.loads(self._ray.get(self.answer))
        except (errors.RayActorError, errors.OutOfMemoryError, errors.ObjectLostError, errors.RaySystemError) as error:
            self.kill()
            first = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            raise WorkerLost(first, starved="OutOfMemory" in first or "OOM" in first) from None
        except errors.RayTaskError as error:
            raise ContractError(f"a worker on Ray broke: {error}") from error
        self.answer, self.state = None, WorkerState.IDLE
        if message["kind"] == "result":
            body: dict[str, Any] = message["body"]
            return body
        if message["kind"] == "unbuilt":
            self.kill()
        raise error_from_body(message["body"])

    def check(self, progress: Progress) -> None:
        if self._heard_ref is None:
            self._heard_ref = self._actor.heard.options(concurrency_group=TALK).remote()
        elif self._ray.wait([self._heard_ref], timeout=0)[0]:
            try:
                said, what, done, total = self._ray.get(self._heard_ref)
            except self._ray.exceptions.RayError:
                return  # it is gone: its answer will raise
            self._heard_ref = None
            if said != self._said:
                self._silent, self._said = 0.0, said
                if what:
                    self._progressed(what, done, total, progress)
        if self._said == 0:  # it waits for its resources, or builds
            self._started(WorkerState.WORKING)
        super().check(progress)

    def stop(self) -> None:
        if self.answer is not None:
            self._actor.stop.options(concurrency_group=TALK).remote()

    def join(self, seconds: float) -> None:
        if self.answer is not None:
            self._ray.wait([self.answer], timeout=seconds)

    def kill(self) -> None:
        actor, self._actor, self.answer = self._actor, None, None
        self.state = WorkerState.ABSENT
        if actor is not None:
            self._ray.kill(actor, no_restart=True)


class RayExecutor(PoolExecutor[ActorHandle]):
    """One actor for every trial that may be under way; a lost one is replaced, wherever the cluster has room.

    Actors belong to this process: Ray ends them when it dies.

    Args:
        spec: How an actor builds its oracle.
        limits: How long a worker may take.
        workers: Trials under way at once.
        resources: Resources of one actor by the keys of ``RESOURCES``; ``None`` leaves one to Ray.
        address: Of a running cluster; ``None`` starts Ray on this machine for this run alone.

    Raises:
        MissingExtraError: If Ray is not installed.
        DeviceError: If the cluster can't be reached, or no actor can ever find its resources there.
    """

    def __init__(self, spec: OracleSpec, limits: Limits, workers: int,
                 resources: Mapping[str, float | None], address: str | None) -> None:
        try:
            import ray  # an optional extra
        except ImportError as error:
            raise MissingExtraError("ray", "ray", "executor=ray") from error
        wanted = {option: v for option, v in resources.items() if v is not None}
        super().__init__([ActorHandle(ray, spec, limits, wanted) for _ in range(workers)], limits)
        self._ray, self._ours = ray, not ray.is_initialized()
        if self._ours:
            try:
                # Without an address Ray joins a cluster that RAY_ADDRESS names or that runs on this machine.
                ray.init(address=address or "local", include_dashboard=False, log_to_driver=False,
                         logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise DeviceError(f"executor.address must name a Ray cluster that runs, or be null; {address!r} can't "
                                  f"be reached ({str(error).splitlines()[0]})") from error
        found = ray.cluster_resources()
        lacking = {RESOURCES[o]: v for o, v in wanted.items() if v > found.get(RESOURCES[o], 0.0)}
        if lacking:
            self.close()
            listed = ", ".join(f"{v:g} {k} (there are {found.get(k, 0.0):g})" for k, v in lacking.items())
            raise DeviceError(f"executor=ray: a worker takes {listed} of the whole cluster; lower executor.cpus, "
                              "executor.gpus or executor.memory, or add machines")

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._ours and self._ray.is_initialized():
                self._ray.shutdown()

    def _wait(self, workers: Sequence[ActorHandle]) -> list[ActorHandle]:
        ready, _ = self._ray.wait([w.answer for w in workers], timeout=POLL_SECONDS)
        return [w for w in workers if w.answer in ready]
