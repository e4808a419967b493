"""How long a worker may take: fixed limits, and what evaluations before took."""

import statistics
from collections import deque
from dataclasses import dataclass

from qra_bo.trials import TrialResult, TrialSpec, TrialState

PACE = 9
"""Finished evaluations whose seconds a step say how long another may take."""


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
        retries: How often an evaluation whose worker died or hung is begun again on another one (where it goes on from
            its checkpoint). One that ran the machine out of memory is never repeated.
    """

    silence: float | None
    slowdown: float | None = None
    startup: float | None = None
    retries: int = 0


class Pace:
    """Seconds a step of the evaluations of all workers, and what they allow the next one."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seconds: deque[float] = deque(maxlen=PACE)

    def note(self, m: TrialResult) -> None:
        """Learn from a finished evaluation; one that gave no loss says nothing."""
        if m.state is TrialState.OK:
            self._seconds.append(m.seconds / max(1, m.new_steps))

    def allowed(self, request: TrialSpec) -> float | None:
        """Seconds that an evaluation may take in all; ``None`` where there is no limit, or nothing is known yet."""
        silence, slowdown = self._limits.silence, self._limits.slowdown
        if silence is None or slowdown is None or not self._seconds:
            return None
        return silence + slowdown * request.steps * statistics.median(self._seconds)


def overdue(allowed: float | None) -> str:
    """Why an evaluation that took longer than ``allowed`` seconds counts as lost."""
    return f"it took more than {allowed or 0:.3g} s, far longer than such evaluations before it, and counts as hung"


def silent(seconds: float | None) -> str:
    """Why a worker that said nothing for so many seconds counts as lost."""
    return f"it was silent for more than {seconds or 0:g} s and counts as hung"
