"""Stopping at a clean line: signals become an exception, but never in the middle of a journal line."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from qra_bo.utils.process import ASKED, STOPPING


class RunInterrupted(KeyboardInterrupt):
    """The run was asked to stop by a signal; its journal is clean, and it goes on with ``key`` set to ``folder``.

    ``exit_status`` is as in a shell: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP, 138 for SIGUSR1.
    """

    def __init__(self, signum: int, folder: Path | None = None, key: str = "out") -> None:
        self.signum, self.exit_status = signum, 128 + signum
        where = "" if folder is None else f" with {key}={folder} to go on"
        super().__init__(f"stopped by {signal.Signals(signum).name}; run the same command again{where}")


class Interrupts:
    """While entered, the first of ``STOPPING`` raises ``RunInterrupted`` in the main thread, outside shields.

    A second SIGINT or SIGTERM acts as it would without this, a second SIGHUP or SIGUSR1 is ignored. One that this
    process was started to ignore (``nohup``) stays ignored. In any other thread than the main one it changes nothing.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._pending: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                if signum in ASKED or signal.getsignal(signum) is not signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signum, handler = self._previous.popitem()
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        for other, handler in self._previous.items():
            signal.signal(other, handler if other in ASKED else signal.SIG_IGN)
        if self._depth == 0:
            raise RunInterrupted(signum)
        self._pending = signum

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Hold a signal back until the block has ended."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._depth == 0 and self._pending is not None:
            signum, self._pending = self._pending, None
            raise RunInterrupted(signum)
