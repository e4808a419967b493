"""``task=search``: profile, search, confirm, fine-tune, export, report."""

from qra_bo.config import RunConfig
from qra_bo.errors import ModelError


def run(config: RunConfig) -> int:
    """Search; returns 0, or 3 where the first winner measured over the budget.

    Raises:
        UserError: If the input or the environment can't work; with no weights the memory plan has been printed.
    """
    from qra_bo.run import search

    try:
        return search(config).exit_status
    except ModelError:
        from qra_bo.tasks.memory import plan_lines

        print("\n".join(plan_lines(config)))
        raise
