"""Trials on their way through an executor, and how long a worker may take for them."""

import logging
import statistics
import time
from collections import deque
from dataclasses import dataclass

from qra_bo.execution.messages import failure
from qra_bo.trials import TrialResult, TrialSpec, TrialState

log = logging.getLogger(__name__)
PACE = 9
"""Number of last finished trials whose seconds a step say how long the next may take."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a worker may take.

    Args:
        silence: Longest time with neither progress nor an answer, in seconds; then it counts as hung and is killed.
            ``None`` waits for ever.
        slowdown: A trial may take ``silence`` and this many times the median time of as many steps in trials before it,
            so that the deadline goes with the fidelity. ``None`` sets no such limit.
        startup: As ``silence``, while the worker builds its oracle.
        retries: How often a trial whose worker died or hung is begun again on another one (from its checkpoint). One
            that ran the machine out of memory is never repeated.
    """

    silence: float | None
    slowdown: float | None = None
    startup: float | None = None
    retries: int = 0


@dataclass(slots=True)
class Job:
    """One trial.

    Args:
        spec: The trial.
        submitted: When, in monotonic seconds.
        tries: How often it was begun again.
        kills: Count of processes that the kernel had killed for want of memory when it was begun.
    """

    spec: TrialSpec
    submitted: float
    tries: int = 0
    kills: int = 0


class Jobs:
    """Waiting and ended trials, in order.

    Args:
        limits: How long a worker may take, and how often a lost trial is begun again.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seconds: deque[float] = deque(maxlen=PACE)
        self.waiting: deque[Job] = deque()
        self.done: deque[tuple[TrialSpec, TrialResult]] = deque()

    def submit(self, spec: TrialSpec) -> None:
        """Have a trial wait for a worker."""
        self.waiting.append(Job(spec, time.monotonic()))

    def allowed(self, spec: TrialSpec) -> float | None:
        """Return the seconds that a trial may take in all; ``None`` where there is no limit, or no pace yet."""
        silence, slowdown = self._limits.silence, self._limits.slowdown
        if silence is None or slowdown is None or not self._seconds:
            return None
        return silence + slowdown * spec.steps * statistics.median(self._seconds)

    def ended(self, job: Job, result: TrialResult) -> None:
        """Take in a result; one with a loss sets the pace of the next."""
        if result.state is TrialState.OK:
            self._seconds.append(result.seconds / max(1, result.new_steps))
        self.done.append((job.spec, result))

    def lost(self, job: Job, why: str, steps: int, starved: bool) -> None:
        """Begin the trial of a lost worker again before all that wait, or make a failure of it.

        Args:
            job: The trial.
            why: How its worker was lost.
            steps: Steps that it had made.
            starved: Whether memory ran out: it would again.
        """
        if not starved and job.tries < self._limits.retries:
            job.tries += 1
            log.warning("%s; the trial is begun again on another one", why)
            self.waiting.appendleft(job)
            return
        log.warning("a trial was lost: %s; another worker is started for the next one", why)
        state = TrialState.OOM if starved else TrialState.FAILED
        self.done.append((job.spec, failure(state, why, steps, time.monotonic() - job.submitted)))


def overdue(allowed: float | None) -> str:
    """Return why a trial that took longer than ``allowed`` seconds counts as lost."""
    return f"it took more than {allowed or 0:.3g} s, far longer than such trials before it, and counts as hung"


def silent(seconds: float | None) -> str:
    """Return why a worker counts as lost that sent nothing for so many seconds."""
    return f"it was silent for more than {seconds or 0:g} s and counts as hung"
