"""``task=finetune``: fine-tune one given allocation and deliver it, without a search."""

from qra_bo.api import fine_tune
from qra_bo.config import RunConfig


def run(config: RunConfig) -> int:
    """Fine-tune ``allocation``; returns 0.

    Raises:
        UserError: If the input or the environment can't work, or the allocation measured over the budget.
    """
    return fine_tune(config).exit_status
