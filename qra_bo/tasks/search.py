"""``task=search``: profile, search, confirm, fine-tune, export, report."""

from contextlib import suppress

from qra_bo.config import RunConfig
from qra_bo.errors import DeviceError, ModelError, UserError


def run(config: RunConfig) -> int:
    """Search; returns 0, or 3 where the first winner measured over the budget.

    Raises:
        UserError: If the input or the environment can't work; with no weights, or not the device or the RAM that it
            takes, the memory plan has been printed.
    """
    from qra_bo.run import search

    try:
        return search(config).exit_status
    except (DeviceError, ModelError):
        from qra_bo.tasks.memory import plan_lines

        with suppress(UserError):  # without even the model's shapes there is no plan; the first error says why
            print("\n".join(plan_lines(config)))
        raise
