"""``task=search``: profile, search, confirm, fine-tune, export, report."""

from qra_bo.api import search
from qra_bo.config import RunConfig


def run(config: RunConfig) -> int:
    """Search; returns 0, or 3 where the first winner measured over the budget.

    Raises:
        UserError: If the input or the environment can't work.
    """
    return search(config).exit_status
