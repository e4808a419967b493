"""``task=table1``: every method of the published comparison beside ours, at equal conditions."""

from qra_bo.config.schema import RunConfig


def run(config: RunConfig) -> int:
    """Make the table or go on with it; returns 0.

    Raises:
        UserError: If the input or the environment can't work.
    """
    from qra_bo.table1.run import run_table

    run_table(config)
    return 0
