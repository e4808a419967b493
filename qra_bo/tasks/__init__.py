"""Tasks of the command line: search and fine-tune are ``pipeline.run``, every other task is a module here, with
``run(config) -> exit status``.

A module is imported when its task runs, so that ``task=memory`` loads no torch.
"""

import importlib
from contextlib import suppress

from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.config.presets import preset_notes
from qra_bo.utils.errors import DataError, DeviceError, ModelError, UserError
from qra_bo.utils.process import check_printed


def run_task(config: RunConfig) -> int:
    """Run ``config.task``; returns the exit status: 0, or 3 where the first winner measured over the budget.

    Raises:
        UserError: If the user's input or environment can't work; where weights, the hub, device or RAM are missing,
            the memory plan has been printed.
    """
    try:
        if config.task in ("search", "finetune"):
            from qra_bo.pipeline.run import run  # loads matplotlib
            return run(config).exit_status
        status = int(importlib.import_module(f"qra_bo.tasks.{config.task}").run(config))
        check_printed()  # the answer of these; that of a run is in its folder
        return status
    except (DeviceError, ModelError, DataError) as error:
        missing = config.data.kind == "hub" or not isinstance(error, DataError)
        if missing and config.task in ("search", "finetune", "profile"):
            from qra_bo.pipeline.pricing import make_plan  # these load rich and the memory model, for this case alone
            from qra_bo.tasks.memory import plan_lines
            with suppress(UserError):  # without the model's shapes there is no plan; the first error says why
                if config.task == "finetune":  # its budget may be that of the allocation
                    from qra_bo.pipeline.given import read_allocation
                    read = read_allocation(config, make_space(config, make_spec(config)))[1]
                    config = config.with_changes(budget=read.budget)
                print("\n".join(plan_lines(make_plan(config), preset_notes(config))))
        raise
