"""Tasks of the command line: one module a task, each with ``run(config) -> exit status``.

A module is imported when its task runs, so that ``task=memory`` loads no torch.
"""

import importlib
from contextlib import suppress

from qra_bo.config import RunConfig
from qra_bo.utils.errors import DeviceError, ModelError, UserError

__all__ = ["NEED_A_MODEL", "TASKS", "run_task"]

TASKS = ("search", "memory", "profile", "evaluate", "export", "report")
NEED_A_MODEL = ("search", "profile", "evaluate")
"""Tasks that print the memory plan where the weights, the device or the RAM are missing."""


def run_task(config: RunConfig) -> int:
    """Run ``config.task``; returns the exit status.

    Raises:
        UserError: If the user's input or environment can't work; where weights, device or RAM are missing, the memory
            plan has been printed.
    """
    try:
        status: int = importlib.import_module(f"qra_bo.tasks.{config.task}").run(config)
    except (DeviceError, ModelError):
        if config.task in NEED_A_MODEL:
            from qra_bo.tasks.memory import plan_lines  # rich and the memory model, needed in this case alone

            with suppress(UserError):  # without the model's shapes there is no plan; the first error says why
                print("\n".join(plan_lines(config)))
        raise
    return status
