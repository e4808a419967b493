"""Trials in worker processes of this machine."""

import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from qra_bo.execution.base import OracleSpec
from qra_bo.execution.pool import POLL_SECONDS, Limits, PoolExecutor, WorkerHandle, WorkerLost, WorkerState
from qra_bo.execution.worker import error_from_body
from qra_bo.oracle.protocol import Progress
from qra_bo.utils.holder import is_stopped
from qra_bo.utils.process import STOPPING, interpreter

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""How long an idle worker may take to end by itself before it is killed."""
_ENTRY = "from qra_bo.execution.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"


class ProcessHandle(WorkerHandle):
    """Non-blocking handle of one worker process; cleans up when the process dies or times out."""

    def __init__(self, spec: OracleSpec, limits: Limits) -> None:
        super().__init__(limits)
        self._spec = spec
        self._seen_stopped = False
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection  # to the process, while there is one
        self._lifeline: int  # it closes with this process

    def begin(self, request: Mapping[str, Any]) -> None:
        if self.process is not None and self.process.poll() is not None:
            self.kill()
        self.done, messages = 0, [request]
        if self.process is None:
            self._start()
            messages.insert(0, {"target": self._spec.target, "kwargs": self._spec.kwargs})
        else:
            self._started(WorkerState.WORKING)
        try:
            for message in messages:
                self.connection.send_bytes(json.dumps(message).encode())
        except OSError:
            raise self._died("it was gone when it was needed") from None

    def receive(self, progress: Progress) -> dict[str, Any] | None:
        try:
            message = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise self._died("it died") from None
        kind, body = message["kind"], message["body"]
        if kind == "progress":
            self._progressed(str(body["what"]), int(body["done"]), int(body["total"]), progress)
            return None
        if kind == "ready":
            self._started(WorkerState.WORKING)
            return None
        building, self.state = self.state is WorkerState.BUILDING, WorkerState.IDLE
        if kind == "error":
            if building:
                self.join(GRACE_SECONDS)
                self.kill()
            raise error_from_body(body)
        answer: dict[str, Any] = body
        return answer

    def stop(self) -> None:
        if self.process is not None and self.state is not WorkerState.BUILDING:
            with suppress(OSError):  # it may be gone already
                self.connection.send_bytes(b'{"op": "close"}')

    def join(self, seconds: float) -> None:
        if self.process is not None and self.state is not WorkerState.BUILDING:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds if self.state is WorkerState.WORKING else GRACE_SECONDS)

    def kill(self) -> None:
        process, self.process = self.process, None
        self.state = WorkerState.ABSENT
        if process is not None:
            process.kill()
            process.wait()
            self.connection.close()
            os.close(self._lifeline)

    def spend(self, seconds: float) -> None:
        stopped = self.process is not None and is_stopped(self.process.pid)
        if stopped and not self._seen_stopped and self.process is not None:
            log.warning("the worker process %d is stopped, and waited for: continue it with kill -CONT %d",
                        self.process.pid, self.process.pid)
        self._seen_stopped = stopped
        if not stopped:
            super().spend(seconds)

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        ends, self._lifeline = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # the worker begins with them blocked
        try:
            self.process = subprocess.Popen(interpreter(_ENTRY, str(theirs.fileno()), str(ends)),
                                            stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), ends))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            os.close(ends)
        self._started(WorkerState.BUILDING)

    def _died(self, what: str) -> WorkerLost:
        """Clean up after a process that ended by itself; return the error to raise."""
        process, building = self.process, self.state is WorkerState.BUILDING
        code = None
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(GRACE_SECONDS)
        self.kill()
        if code is None:
            return WorkerLost(what, building)
        how = f"exit status {code}"
        if code < 0:
            how = f"killed by {signal.Signals(-code).name if -code in {*signal.Signals} else f'signal {-code}'}"
        return WorkerLost(f"{what} ({how})", building)


class LocalExecutor(PoolExecutor[ProcessHandle]):
    """Keeps one worker process for every ``OracleSpec`` (at least one; they may differ in the device)."""

    in_order = True

    def __init__(self, specs: Sequence[OracleSpec], limits: Limits) -> None:
        super().__init__([ProcessHandle(spec, limits) for spec in specs], limits)

    def _wait(self, workers: Sequence[ProcessHandle]) -> list[ProcessHandle]:
        ready = wait([w.connection for w in workers], min(POLL_SECONDS, *(w.left for w in workers)))
        return [w for w in workers if w.connection in ready]

    def _memory_kills(self) -> int:
        """Return the count of processes that the kernel has killed for want of memory.

        It is of this process's control group or, where it has none, of the machine; 0 where neither is known.
        """
        own = ""
        with suppress(OSError):
            own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
        for path in (Path("/sys/fs/cgroup") / own / "memory.events", Path("/sys/fs/cgroup/memory.events"),
                     Path("/proc/vmstat")):
            with suppress(OSError):
                for line in path.read_text().splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        return 0
