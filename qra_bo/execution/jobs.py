"""Evaluations on their way through an executor: those that wait for a worker, and those that ended."""

import logging
import time
from collections import deque
from dataclasses import dataclass

from qra_bo.execution.limits import Limits
from qra_bo.execution.messages import failure
from qra_bo.trials import TrialResult, TrialSpec, TrialState

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """One evaluation.

    Args:
        request: What is asked for.
        submitted: When, in monotonic seconds.
        tries: How often it was begun again.
        kills: Processes that the kernel had killed for want of memory when it was begun.
    """

    spec: TrialSpec
    submitted: float
    tries: int = 0
    kills: int = 0


class Jobs:
    """What waits and what ended, in order.

    Args:
        limits: How often a lost evaluation is begun again.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.waiting: deque[Job] = deque()
        self.done: deque[tuple[TrialSpec, TrialResult]] = deque()

    def submit(self, request: TrialSpec) -> None:
        """Have an evaluation wait for a worker."""
        self.waiting.append(Job(request, time.monotonic()))

    def lost(self, job: Job, why: str, steps: int, starved: bool) -> None:
        """Begin the evaluation of a lost worker again before all that waits, or make a failure of it.

        Args:
            job: The evaluation.
            why: How its worker was lost.
            steps: Steps that it had made.
            starved: Whether memory ran out: it would again.
        """
        if not starved and job.tries < self._limits.retries:
            job.tries += 1
            log.warning("%s; the evaluation is begun again on another one", why)
            self.waiting.appendleft(job)
            return
        log.warning("an evaluation was lost: %s; another worker is started for the next one", why)
        self.done.append((job.spec, failure(TrialState.OOM if starved else TrialState.FAILED, why, steps,
                                               time.monotonic() - job.submitted)))
