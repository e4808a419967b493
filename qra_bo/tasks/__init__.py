"""What a run can be asked to do: one module a task, loaded only when asked for."""

import importlib
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from qra_bo.utils.errors import DeviceError, ModelError, UserError

if TYPE_CHECKING:
    from qra_bo.config.schema import RunConfig

TASKS: Mapping[str, str] = {
    "search": "qra_bo.tasks.search",
    "memory": "qra_bo.tasks.memory",
    "profile": "qra_bo.tasks.profile",
    "evaluate": "qra_bo.tasks.evaluate",
    "export": "qra_bo.tasks.export",
    "report": "qra_bo.tasks.report",
}
"""Module of every task; each has ``run(config) -> exit status``."""


NEEDS_A_MODEL = frozenset({"search", "profile", "evaluate"})
"""Tasks of which at least the memory plan can be had where there are no weights, or not the device or the RAM."""


def run_task(config: "RunConfig") -> int:
    """Do what ``config.task`` says; returns the exit status.

    Raises:
        UserError: If the user's input or environment can't work; with no weights, or not the device or the RAM that it
            takes, the memory plan has been printed.
    """
    try:
        status: int = importlib.import_module(TASKS[config.task]).run(config)
    except (DeviceError, ModelError):
        if config.task in NEEDS_A_MODEL:
            from qra_bo.tasks.memory import plan_lines

            with suppress(UserError):  # without even the model's shapes there is no plan; the first error says why
                print("\n".join(plan_lines(config)))
        raise
    return status
