"""What a run can be asked to do: one module a task, loaded only when asked for."""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qra_bo.config import RunConfig

TASKS: Mapping[str, str] = {
    "search": "qra_bo.tasks.search",
    "memory": "qra_bo.tasks.memory",
    "profile": "qra_bo.tasks.profile",
    "evaluate": "qra_bo.tasks.evaluate",
    "export": "qra_bo.tasks.export",
    "report": "qra_bo.tasks.report",
    "table1": "qra_bo.tasks.table1",
}
"""Module of every task; each has ``run(config) -> exit status``."""


def run_task(config: "RunConfig") -> int:
    """Do what ``config.task`` says; returns the exit status.

    Raises:
        UserError: If the user's input or environment can't work.
    """
    status: int = importlib.import_module(TASKS[config.task]).run(config)
    return status
