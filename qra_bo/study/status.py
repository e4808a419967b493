"""``status.json``: the current state of a run, for scripts and people; written atomically."""

import logging
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from qra_bo.study.state import Study
from qra_bo.utils.files import write_json
from qra_bo.utils.redact import redact

log = logging.getLogger(__name__)
STATUS_NAME = "status.json"
REFRESH_SECONDS = 1.0
"""Least time between two writes of progress alone."""


class StatusFile:
    """Keeps ``status.json`` current. Nothing depends on it: a write that fails is logged, no more.

    Args:
        folder: The run's folder.
        clock: Monotonic seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = folder / STATUS_NAME
        self.stage = "start"
        self._clock = clock
        self._written = float("-inf")
        self._activity: dict[str, Any] | None = None

    def progress(self, study: Study, what: str, done: int, total: int) -> None:
        """Note progress; written at most once in ``REFRESH_SECONDS``."""
        self._activity = {"what": what, "done": done, "total": total}
        if self._clock() - self._written >= REFRESH_SECONDS:
            self.write(study, "running")

    def write(self, study: Study, state: str, message: str = "") -> None:
        """Write now.

        Args:
            study: The run so far.
            state: ``"running"``, ``"done"``, ``"interrupted"`` or ``"failed"``.
            message: Why, where it is neither running nor done.
        """
        best = study.incumbent
        planned = study.header.get("planned_cost")
        data = {"schema_version": 1, "state": state, "stage": self.stage, "progress": self._activity,
                "message": redact(message), "trials": study.states, "cost": study.cost.tokens,
                "search_cost": study.search_cost.tokens, "planned_cost": planned, "eta_seconds": eta_seconds(study),
                "best_loss": None if best is None else best.loss, "pid": os.getpid(), "host": socket.gethostname(),
                "updated": datetime.now().astimezone().isoformat(timespec="seconds")}
        self._written = self._clock()
        try:
            write_json(self.path, data)
        except OSError as error:
            log.warning("%s can't be written (%s); the run goes on", self.path, error.strerror)


def eta_seconds(study: Study) -> float | None:
    """Return the seconds that the rest of the planned search takes at the pace so far; ``None`` before any trial."""
    planned = study.header.get("planned_cost")
    seconds, tokens = study.evaluation_seconds, study.cost.tokens
    if planned is None or seconds == 0 or tokens == 0:
        return None
    return max(0.0, float(planned) - study.search_cost.tokens) * seconds / tokens
