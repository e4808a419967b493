"""Evaluations in a worker process, which may die, hang or run out of memory without harm to the run."""

import json
import logging
import multiprocessing
import signal
import statistics
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from qra_bo.errors import QRABOError
from qra_bo.oracle.protocol import Progress
from qra_bo.records import EvaluationRequest, Measurement, TrialState
from qra_bo.study.executor import OracleSpec
from qra_bo.study.messages import (
    ProfileResult,
    error_from_json,
    failure,
    measurement_from_json,
    request_to_json,
)
from qra_bo.study.worker import worker_main

log = logging.getLogger(__name__)
GRACE_SECONDS = 5.0
"""How long an idle worker may take to end by itself before it is killed."""
STOP_SECONDS = 20.0
"""The same for one at work: it ends at its next step, with the evaluation kept on disk."""
PACE = 9
"""Finished evaluations whose seconds a step say how long another may take."""


class WorkerError(QRABOError):
    """The worker process could not be started, or was lost in work that can't be done without."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a worker may take.

    Args:
        silence: Longest time with neither progress nor an answer, in seconds; then it counts as hung and is killed.
            ``None`` waits for ever.
        slowdown: An evaluation may take ``silence`` and this many times what the steps it was asked for took in
            evaluations before it (their median), so that the deadline goes with the fidelity. ``None`` sets no such
            limit.
        startup: As ``silence``, while the worker builds its oracle.
        retries: How often an evaluation whose worker died or hung is begun again on a new one (where it goes on from
            its checkpoint). One that ran the machine out of memory is never repeated.
    """

    silence: float | None
    slowdown: float | None = None
    startup: float | None = None
    retries: int = 0


class _LostError(Exception):
    """The worker died or hung; the message says which and how."""


class _State(Enum):
    BUILDING = "building"
    IDLE = "idle"
    WORKING = "working"


class SubprocessExecutor:
    """Keeps one spawned worker process; a lost one is replaced at the next request.

    Args:
        spec: How the worker builds its oracle.
        limits: How long it may take.
    """

    def __init__(self, spec: OracleSpec, limits: Limits) -> None:
        self._spec, self._limits = spec, limits
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._state = _State.IDLE
        self._done = 0
        self._pace: deque[float] = deque(maxlen=PACE)

    def describe(self) -> Mapping[str, Any]:
        return self._must("describe")

    def profile(self, progress: Progress) -> ProfileResult:
        return ProfileResult.from_json(self._must("profile", progress))

    def evaluate(self, request: EvaluationRequest, progress: Progress) -> Measurement:
        start, tries = time.monotonic(), 0
        while True:
            connection, kills = self._connected(), out_of_memory_kills()
            try:
                answer = self._call(connection, {"op": "evaluate", "request": request_to_json(request)}, progress,
                                    self._allowed(request))
            except _LostError as lost:
                starved = out_of_memory_kills() > kills
                if not starved and tries < self._limits.retries:
                    tries += 1
                    log.warning("%s; the evaluation is begun again on another one", lost)
                    continue
                log.warning("an evaluation was lost: %s; another worker is started for the next one", lost)
                message = f"{lost}: the machine ran out of memory" if starved else str(lost)
                return failure(TrialState.OOM if starved else TrialState.FAILED, message, self._done,
                               time.monotonic() - start)
            measurement = measurement_from_json(answer)
            if measurement.state is TrialState.OK:
                self._pace.append(measurement.seconds / max(1, measurement.new_steps))
            return measurement

    def call(self, method: str, kwargs: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        return self._must("call", progress, method=method, kwargs=dict(kwargs))

    def close(self) -> None:
        """End the worker: one at work keeps its evaluation on disk first; one that takes too long is killed."""
        self._end(GRACE_SECONDS if self._state is _State.IDLE else
                  STOP_SECONDS if self._state is _State.WORKING else 0.0)

    def _end(self, seconds: float) -> None:
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is None or connection is None:
            return
        try:
            if seconds:
                connection.send_bytes(b'{"op": "close"}')
                process.join(seconds)
        except OSError:
            log.debug("the worker was gone before it could be closed")
        finally:  # a second signal ends the wait
            if process.is_alive():
                process.kill()
            process.join()
            connection.close()
            self._state = _State.IDLE

    def _allowed(self, request: EvaluationRequest) -> float | None:
        """Seconds that an evaluation may take in all."""
        silence, slowdown = self._limits.silence, self._limits.slowdown
        if silence is None or slowdown is None or not self._pace:
            return None
        return silence + slowdown * request.steps * statistics.median(self._pace)

    def _must(self, op: str, progress: Progress = lambda what, done, total: None, **fields: Any) -> dict[str, Any]:
        try:
            return self._call(self._connected(), {"op": op, **fields}, progress, None)
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
        self._process, self._connection, self._state = process, ours, _State.BUILDING
        try:
            self._receive(ours, lambda what, done, total: None, self._limits.startup, None)
        except _LostError as lost:
            raise WorkerError(f"the worker was lost while it built the oracle: {lost}; if memory is short, free "
                              "some or choose a smaller model") from lost
        except QRABOError:
            self._end(GRACE_SECONDS)
            raise
        return ours

    def _call(self, connection: Connection, request: Mapping[str, Any], progress: Progress,
              allowed: float | None) -> dict[str, Any]:
        self._done, self._state = 0, _State.WORKING
        try:
            connection.send_bytes(json.dumps(request).encode())
        except OSError:
            raise self._lose("it was gone when it was needed") from None
        return self._receive(connection, progress, self._limits.silence, allowed)

    def _receive(self, connection: Connection, progress: Progress, silence: float | None,
                 allowed: float | None) -> dict[str, Any]:
        """Wait for an answer, passing progress on."""
        end = None if allowed is None else time.monotonic() + allowed
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            wait = silence if left is None else left if silence is None else min(silence, left)
            try:
                if not connection.poll(wait):
                    raise self._lose(f"it was silent for more than {silence:g} s and counts as hung"
                                     if wait == silence else _overdue(allowed), hung=True)
                message = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                raise self._lose("it died") from None
            body: dict[str, Any] = message["body"]
            if message["kind"] == "progress":
                if left == 0.0:
                    raise self._lose(_overdue(allowed), hung=True)
                self._done = int(body["done"])
                progress(str(body["what"]), self._done, int(body["total"]))
                continue
            self._state = _State.IDLE
            if message["kind"] == "error":
                raise error_from_json(body, str(body["trace"]))
            return body

    def _lose(self, what: str, hung: bool = False) -> _LostError:
        """Bury the worker; what to raise."""
        process = self._process
        if process is not None and not hung:
            process.join(GRACE_SECONDS)
        code = None if process is None else process.exitcode
        self._end(0.0)
        if hung or code is None:
            return _LostError(f"worker lost: {what}")
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit status {code}"
        return _LostError(f"worker lost: {what} ({how})")


def _overdue(allowed: float | None) -> str:
    return f"it took more than {allowed or 0:.3g} s, far longer than such evaluations before it, and counts as hung"


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
