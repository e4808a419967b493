"""A run's summary in ``status.json``: how far it is, and whether it still runs."""

import logging
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from qra_bo.study.journal import is_locked
from qra_bo.utils.files import strict_json, write_json
from qra_bo.utils.redact import redact

log = logging.getLogger(__name__)
STATUS_NAME = "status.json"
STATES = ("running", "done", "interrupted", "failed")
SEARCHING = ("start", "profile", "calibration", "baseline", "reference", "search")
"""Stages whose cost is the planned one."""
REFRESH_SECONDS = 1.0
"""Least time between two writes of progress alone."""


def read_state(folder: Path) -> str:
    """Return the state in a run's ``status.json``, and ``"died"`` where that is ``"running"`` and nothing runs now.

    The run's lock tells them apart: the system frees it with the process that holds it. The text is empty where the
    file is absent or not of a run.
    """
    try:
        state = strict_json((folder / STATUS_NAME).read_bytes())["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "died" if state == "running" and not is_locked(folder) else state if state in STATES else ""


class StatusFile:
    """Keeps ``status.json`` current, with what ``facts`` says of the study. No result depends on it: a write that fails
    is logged, no more."""

    def __init__(self, folder: Path, facts: Callable[[], dict[str, Any]],
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.path = folder / STATUS_NAME
        self.stage = "start"
        self._facts, self._clock = facts, clock
        self._written = float("-inf")
        self._activity: dict[str, Any] | None = None

    def progress(self, what: str, done: int, total: int) -> None:
        """Note progress; written at most once in ``REFRESH_SECONDS``."""
        self._activity = {"what": what, "done": done, "total": total}
        if self._clock() - self._written >= REFRESH_SECONDS:
            self.write("running")

    def write(self, state: str, message: str = "") -> None:
        """Write ``state``, one of ``STATES``, now; ``message`` is the reason of an end before the end."""
        data = {"schema_version": 1, "state": state, "stage": self.stage, "progress": self._activity,
                "message": redact(message), **self._facts(), "pid": os.getpid(), "host": socket.gethostname(),
                "updated": datetime.now().astimezone().isoformat(timespec="seconds")}
        if state != "running":
            data["eta_seconds"] = None
        self._written = self._clock()
        try:
            write_json(self.path, data)
        except OSError as error:
            log.warning("%s can't be written (%s); the run goes on", self.path, error.strerror)
