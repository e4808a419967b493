"""Where evaluations run: in this process, or in a worker that may die, hang or run out of memory without harm."""

import json
import logging
import multiprocessing
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from qra_bo.errors import ConfigError, QRABOError
from qra_bo.oracle.protocol import Oracle, Progress
from qra_bo.records import EvaluationRequest, Measurement, TrialState
from qra_bo.study.messages import (
    ProfileResult,
    error_from_json,
    failure,
    failure_of,
    is_result,
    measurement_from_json,
    request_to_json,
    run_profile,
)
from qra_bo.study.worker import worker_main

log = logging.getLogger(__name__)
GRACE_SECONDS = 5.0
"""How long a worker may take to end by itself before it is killed."""


class WorkerError(QRABOError):
    """The worker process could not be started, or was lost in work that can't be done without."""


class Executor(Protocol):
    """Runs an oracle. What goes wrong in an evaluation is a ``Measurement``; in anything else, an error."""

    def describe(self) -> Mapping[str, Any]:
        """The oracle's provenance."""
        ...

    def profile(self, progress: Progress) -> ProfileResult:
        """Measure the sensitivities, with their cost."""
        ...

    def evaluate(self, request: EvaluationRequest, progress: Progress) -> Measurement:
        """Evaluate one allocation."""
        ...

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        """Call a method that only some oracles have (the final fine-tune); arguments and answer are JSON values."""
        ...

    def close(self) -> None:
        """Release what it holds; it may be called twice."""
        ...


@dataclass(frozen=True)
class OracleSpec:
    """How a worker builds its oracle.

    Args:
        target: ``"package.module:callable"``.
        kwargs: Its keyword arguments: JSON values only.

    Raises:
        ConfigError: If ``kwargs`` are not JSON.
    """

    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.kwargs_json()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the arguments of the oracle {self.target} must be JSON values: {error}") from error

    def kwargs_json(self) -> str:
        return json.dumps(dict(self.kwargs))


class InProcessExecutor:
    """Calls the oracle directly: for cheap oracles, tests and debuggers."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def describe(self) -> Mapping[str, Any]:
        return self._oracle.describe()

    def profile(self, progress: Progress) -> ProfileResult:
        return run_profile(self._oracle, progress)

    def evaluate(self, request: EvaluationRequest, progress: Progress) -> Measurement:
        start = time.monotonic()
        try:
            return self._oracle.evaluate(request, progress)
        except Exception as error:
            if not is_result(error):
                raise
            return failure_of(error, 0, time.monotonic() - start)

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = getattr(self._oracle, method)(**kwargs, progress=progress)
        return answer

    def close(self) -> None:
        self._oracle.close()


class _LostError(Exception):
    """The worker died or hung; the message says which and how."""


class SubprocessExecutor:
    """Keeps one spawned worker process; a lost one is replaced at the next request.

    Args:
        spec: How the worker builds its oracle.
        deadline_seconds: Longest silence (neither progress nor an answer) of a worker at work; then it counts as hung
            and is killed. ``None`` waits for ever.
        startup_seconds: The same while it builds its oracle.
    """

    def __init__(self, spec: OracleSpec, deadline_seconds: float | None, startup_seconds: float | None = None) -> None:
        self._spec, self._deadline, self._startup = spec, deadline_seconds, startup_seconds
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._busy = False
        self._done = 0

    def describe(self) -> Mapping[str, Any]:
        return self._must("describe")

    def profile(self, progress: Progress) -> ProfileResult:
        return ProfileResult.from_json(self._must("profile", progress))

    def evaluate(self, request: EvaluationRequest, progress: Progress) -> Measurement:
        connection = self._connected()
        start, kills = time.monotonic(), out_of_memory_kills()
        try:
            answer = self._call(connection, {"op": "evaluate", "request": request_to_json(request)}, progress)
            return measurement_from_json(answer)
        except _LostError as lost:
            starved = out_of_memory_kills() > kills
            log.warning("an evaluation was lost: %s; another worker is started for the next one", lost)
            message = f"{lost}: the machine ran out of memory" if starved else str(lost)
            return failure(TrialState.OOM if starved else TrialState.FAILED, message, self._done,
                           time.monotonic() - start)

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        return self._must("call", progress, method=method, kwargs=dict(kwargs))

    def close(self) -> None:
        """End the worker: politely if it is idle, else at once."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is None or connection is None:
            return
        if not self._busy:
            try:
                connection.send_bytes(b'{"op": "close"}')
                process.join(GRACE_SECONDS)
            except OSError:
                log.debug("the worker was gone before it could be closed")
        self._busy = False
        if process.is_alive():
            process.kill()
        process.join()
        connection.close()

    def _must(self, op: str, progress: Progress = lambda what, done, total: None, **fields: Any) -> dict[str, Any]:
        try:
            return self._call(self._connected(), {"op": op, **fields}, progress)
        except _LostError as lost:
            raise WorkerError(f"the worker was lost before the oracle could answer {op!r}: {lost}") from lost

    def _connected(self) -> Connection:
        """The connection to a live worker, started if need be.

        Raises:
            WorkerError: If it dies or hangs before its oracle is built.
            QRABOError: What building the oracle raised.
        """
        if self._process is not None and not self._process.is_alive():
            self._lose("it died while it was idle")
        if self._connection is not None:
            return self._connection
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=worker_main, args=(theirs, self._spec.target, self._spec.kwargs_json()),
                                  name="qra_bo-worker", daemon=True)
        process.start()
        theirs.close()
        self._process, self._connection, self._busy = process, ours, True
        try:
            self._receive(ours, lambda what, done, total: None, self._startup)
        except _LostError as lost:
            raise WorkerError(f"the worker was lost while it built the oracle: {lost}; if memory is short, free "
                              "some or choose a smaller model") from lost
        except QRABOError:
            self.close()
            raise
        return ours

    def _call(self, connection: Connection, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        self._done, self._busy = 0, True
        try:
            connection.send_bytes(json.dumps(request).encode())
        except OSError:
            raise self._lose("it was gone when it was needed") from None
        return self._receive(connection, progress, self._deadline)

    def _receive(self, connection: Connection, progress: Progress, silence: float | None) -> dict[str, Any]:
        """Wait for an answer, passing progress on."""
        while True:
            try:
                if not connection.poll(silence):
                    raise self._lose(f"it was silent for more than {silence:g} s and counts as hung", hung=True)
                message = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                raise self._lose("it died") from None
            body: dict[str, Any] = message["body"]
            if message["kind"] == "progress":
                self._done = int(body["done"])
                progress(str(body["what"]), self._done, int(body["total"]))
                continue
            self._busy = False
            if message["kind"] == "error":
                raise error_from_json(body, str(body["trace"]))
            return body

    def _lose(self, what: str, hung: bool = False) -> _LostError:
        """Bury the worker; what to raise."""
        process = self._process
        if process is not None and not hung:
            process.join(GRACE_SECONDS)
        code = None if process is None else process.exitcode
        self._busy = True
        self.close()
        if hung or code is None:
            return _LostError(f"worker lost: {what}")
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit status {code}"
        return _LostError(f"worker lost: {what} ({how})")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def out_of_memory_kills() -> int:
    """Processes that the kernel has killed for want of memory, as counted by this process's control group or, where
    it has none, by the machine; 0 where neither is told."""
    try:
        own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
    except OSError:
        return 0
    for path in (Path("/sys/fs/cgroup") / own / "memory.events", Path("/sys/fs/cgroup/memory.events"),
                 Path("/proc/vmstat")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
        if counts:
            return counts[0]
    return 0
