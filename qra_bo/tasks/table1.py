"""``task=table1``: every method of the published comparison beside ours, at equal conditions."""

from contextlib import suppress

from qra_bo.config import RunConfig
from qra_bo.errors import DeviceError, ModelError, UserError


def run(config: RunConfig) -> int:
    """Make the table or go on with it; returns 0.

    Raises:
        UserError: If the input or the environment can't work; with no weights, or not the device or the RAM that it
            takes, the memory plan has been printed.
    """
    from qra_bo.table1.run import run_table

    try:
        run_table(config)
    except (DeviceError, ModelError):
        from qra_bo.tasks.memory import plan_lines

        with suppress(UserError):  # without even the model's shapes there is no plan; the first error says why
            print("\n".join(plan_lines(config)))
        raise
    return 0
