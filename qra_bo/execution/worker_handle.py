"""Non-blocking handle of one worker, whatever runs it: its state, its deadlines, and how it is lost."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import Any

from qra_bo.execution.jobs import Limits, overdue, silent
from qra_bo.oracle.protocol import TRAINING, Progress


class WorkerLost(Exception):
    """A worker died or hung.

    Args:
        message: Which of both, and how.
        building: Whether its oracle was not built yet.
        starved: Whether memory ran out.
    """

    def __init__(self, message: str, building: bool = False, starved: bool = False) -> None:
        super().__init__(f"worker lost: {message}")
        self.building, self.starved = building, starved


class WorkerState(Enum):
    """State of a worker."""

    ABSENT = "absent"
    BUILDING = "building"
    IDLE = "idle"
    WORKING = "working"


class WorkerHandle(ABC):
    """A worker with an oracle, started at its first request and again after it was lost.

    Args:
        limits: How long it may take.

    Attributes:
        state: Its state.
        done: Optimiser steps of the current trial.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._allowed: float | None = None
        self._heard = self._begun = 0.0
        self.state = WorkerState.ABSENT
        self.done = 0

    @abstractmethod
    def begin(self, request: Mapping[str, Any], allowed: float | None = None) -> None:
        """Hand over a request; it may take ``allowed`` seconds in all.

        Raises:
            WorkerLost: If the worker dies at that very moment.
        """

    @abstractmethod
    def receive(self, progress: Progress) -> dict[str, Any] | None:
        """Take in one message; return the answer, or ``None`` where it was no answer yet.

        Raises:
            WorkerLost: If the worker died, or is overdue.
            QRABOError: The error of the oracle.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ask it to end, with its trial kept on disk."""

    @abstractmethod
    def join(self) -> None:
        """Wait for it to end, as long as it may take."""

    @abstractmethod
    def kill(self) -> None:
        """End it now, if it has not ended; it may be called twice."""

    def check(self, progress: Progress) -> None:
        """Raise ``WorkerLost`` if it counts as hung by now."""
        now, silence = time.monotonic(), self._silence
        if silence is not None and now >= self._heard + silence:
            raise self._hung(silent(silence))
        self._check_overdue(now)

    @property
    def due(self) -> float | None:
        """Monotonic time at which it counts as hung; ``None`` for never."""
        times = [] if self._silence is None else [self._heard + self._silence]
        if self.state is WorkerState.WORKING and self._allowed is not None:
            times.append(self._begun + self._allowed)
        return min(times, default=None)

    @property
    def _silence(self) -> float | None:
        return self._limits.startup if self.state is WorkerState.BUILDING else self._limits.silence

    def _started(self, state: WorkerState) -> None:
        """Enter ``state`` and start the clocks."""
        self.state = state
        self._heard = self._begun = time.monotonic()

    def _progressed(self, what: str, done: int, total: int, progress: Progress) -> None:
        """Pass progress on, unless the worker is overdue."""
        self._heard = time.monotonic()
        self._check_overdue(self._heard)
        if what == TRAINING:
            self.done = done
        progress(what, done, total)

    def _check_overdue(self, now: float) -> None:
        if self.state is WorkerState.WORKING and self._allowed is not None and now >= self._begun + self._allowed:
            raise self._hung(overdue(self._allowed))

    def _hung(self, what: str) -> WorkerLost:
        """Clean up after a hung worker; return the error to raise."""
        building = self.state is WorkerState.BUILDING
        self.kill()
        return WorkerLost(what, building)
