"""One worker process: it is given a request, listened to, and buried when it dies or hangs; nothing here waits."""

import json
import multiprocessing
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from qra_bo.execution.base import OracleSpec
from qra_bo.execution.limits import Limits, overdue, silent
from qra_bo.execution.messages import error_from_json
from qra_bo.execution.worker import worker_main
from qra_bo.oracle.protocol import TRAINING, Progress

GRACE_SECONDS = 5.0
"""How long an idle worker may take to end by itself before it is killed."""
STOP_SECONDS = 20.0
"""The same for one at work: it ends at its next step, with the evaluation kept on disk."""


class WorkerLost(Exception):
    """A worker died or hung; the message says which and how.

    Args:
        message: That.
        building: Whether its oracle was not built yet.
    """

    def __init__(self, message: str, building: bool) -> None:
        super().__init__(message)
        self.building = building


class WorkerState(Enum):
    """What a worker is doing."""

    ABSENT = "absent"
    BUILDING = "building"
    IDLE = "idle"
    WORKING = "working"


class Worker:
    """A spawned process with an oracle, started at its first request and again after it was lost.

    Args:
        spec: How it builds its oracle.
        limits: How long it may take.
    """

    def __init__(self, spec: OracleSpec, limits: Limits) -> None:
        self._spec, self._limits = spec, limits
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._request = b""
        self._allowed: float | None = None
        self._heard = self._begun = 0.0
        self.state = WorkerState.ABSENT
        self.done = 0

    @property
    def process(self) -> BaseProcess | None:
        return self._process

    @property
    def connection(self) -> Connection:
        """What becomes readable when there is something to ``receive``."""
        if self._connection is None:
            raise self._lose("it was gone when it was needed")
        return self._connection

    def begin(self, request: Mapping[str, Any], allowed: float | None = None) -> None:
        """Hand over a request; it may take ``allowed`` seconds in all.

        Raises:
            WorkerLost: If the process dies at that very moment.
        """
        if self._process is not None and not self._process.is_alive():
            self.kill()
        self.done, self._allowed, self._request = 0, allowed, json.dumps(request).encode()
        if self._process is None:
            self._start()
        else:
            self._send()

    def receive(self, progress: Progress) -> dict[str, Any] | None:
        """Take in one message: the answer, or ``None`` where it was no answer yet.

        Raises:
            WorkerLost: If the process died, or is overdue.
            QRABOError: What the oracle raised.
        """
        try:
            message = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise self._lose("it died") from None
        self._heard = time.monotonic()
        kind, body = message["kind"], message["body"]
        if kind == "progress":
            if self._overdue(self._heard):
                raise self._lose(overdue(self._allowed), hung=True)
            what, done = str(body["what"]), int(body["done"])
            if what == TRAINING:
                self.done = done
            progress(what, done, int(body["total"]))
            return None
        if kind == "ready":
            self._send()
            return None
        building, self.state = self.state is WorkerState.BUILDING, WorkerState.IDLE
        if kind == "error":
            if building:
                self.join()
                self.kill()
            raise error_from_json(body, str(body["trace"]))
        answer: dict[str, Any] = body
        return answer

    @property
    def due(self) -> float | None:
        """Monotonic time at which it counts as hung; ``None`` for never."""
        silence = self._silence
        times = [] if silence is None else [self._heard + silence]
        if self.state is WorkerState.WORKING and self._allowed is not None:
            times.append(self._begun + self._allowed)
        return min(times, default=None)

    def check(self, now: float) -> None:
        """Raise ``WorkerLost`` if it counts as hung at the monotonic time ``now``."""
        silence = self._silence
        if silence is not None and now >= self._heard + silence:
            raise self._lose(silent(silence), hung=True)
        if self._overdue(now):
            raise self._lose(overdue(self._allowed), hung=True)

    def stop(self) -> None:
        """Ask it to end, with what it is evaluating kept on disk."""
        if self._connection is not None and self.state is not WorkerState.BUILDING:
            with suppress(OSError):  # it may be gone already
                self._connection.send_bytes(b'{"op": "close"}')

    def join(self) -> None:
        """Wait for it to end, as long as it may take."""
        if self._process is not None and self.state is not WorkerState.BUILDING:
            self._process.join(STOP_SECONDS if self.state is WorkerState.WORKING else GRACE_SECONDS)

    def kill(self) -> None:
        """End it now, if it has not ended; it may be called twice."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        self.state = WorkerState.ABSENT
        if process is not None and connection is not None:
            if process.is_alive():
                process.kill()
            process.join()
            connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=worker_main, args=(theirs, self._spec.target, self._spec.kwargs_json()),
                                        name="qra_bo-worker", daemon=True)
        self._process.start()
        theirs.close()
        self.state, self._heard = WorkerState.BUILDING, time.monotonic()

    def _send(self) -> None:
        self.state, self._heard = WorkerState.WORKING, time.monotonic()
        self._begun = self._heard
        try:
            self.connection.send_bytes(self._request)
        except OSError:
            raise self._lose("it was gone when it was needed") from None

    @property
    def _silence(self) -> float | None:
        return self._limits.startup if self.state is WorkerState.BUILDING else self._limits.silence

    def _overdue(self, now: float) -> bool:
        return self.state is WorkerState.WORKING and self._allowed is not None and now >= self._begun + self._allowed

    def _lose(self, what: str, hung: bool = False) -> WorkerLost:
        """Bury the worker; what to raise."""
        process, building = self._process, self.state is WorkerState.BUILDING
        if process is not None and not hung:
            process.join(GRACE_SECONDS)
        code = None if process is None else process.exitcode
        self.kill()
        if hung or code is None:
            return WorkerLost(f"worker lost: {what}", building)
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit status {code}"
        return WorkerLost(f"worker lost: {what} ({how})", building)


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
