"""Task accuracy of one configuration: fine-tuned as for its loss, then asked through lm-evaluation-harness."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qra_bo.finetune.adalora import AdaLoraSettings
from qra_bo.finetune.adalora_run import AdaLoraTask, run_adalora
from qra_bo.finetune.evaluation.harness import score_tasks
from qra_bo.oracle.protocol import Progress
from qra_bo.space import Allocation
from qra_bo.trials import TrialSpec, TrialState

if TYPE_CHECKING:
    from qra_bo.finetune.oracle import FinetuneOracle


@dataclass(frozen=True, slots=True)
class Trained:
    """How the model that is asked was trained.

    Args:
        allocation: Formats and ranks; of AdaLoRA the target ranks.
        init: How the adapters start.
        initial_rank: AdaLoRA's, or ``None`` for LoRA.
        steps: Optimiser steps.
        train_seed: Of data order and initialisation.
        lr_scale: Factor on the learning rate.
    """

    allocation: Allocation
    init: str
    initial_rank: int | None
    steps: int
    train_seed: int
    lr_scale: float


def answer_tasks(oracle: "FinetuneOracle", trained: Trained, tasks: Sequence[str], batch: int, limit: int | None,
                 progress: Progress) -> dict[str, Any]:
    """Train and ask.

    Args:
        oracle: Holds the model.
        trained: See there.
        tasks: Names of the harness' tasks, or files.
        batch: Sequences of one forward pass.
        limit: Questions of every task, or ``None`` for all.
        progress: Told after every step.

    Returns:
        JSON values: ``state`` and ``message`` of the training, and ``scores``, a list of ``TaskScore`` fields.

    Raises:
        MissingExtraError: If lm-eval is not installed.
        ConfigError: If the harness knows no task of a name.
        DataError: If a file is malformed.
    """
    scores: list[dict[str, Any]] = []

    def ask() -> None:
        scores.extend(asdict(s) for s in score_tasks(oracle.model, oracle.tokenizer, tasks, batch=batch, limit=limit))

    if trained.initial_rank is not None:
        ranks = AdaLoraSettings(trained.initial_rank, trained.allocation.ranks[0])
        task = AdaLoraTask(trained.allocation.formats, ranks, trained.steps, trained.train_seed, "validation",
                           trained.lr_scale, False)
        found = run_adalora(oracle, task, progress, ask)
        return {"state": found["state"], "message": found["message"], "scores": scores}
    request = TrialSpec(trained.allocation, trained.steps, trained.steps, trained.train_seed, "validation",
                                trained.lr_scale, trained.init)
    measured = oracle.evaluate(request, progress, ask)
    return {"state": TrialState(measured.state).value, "message": measured.message, "scores": scores}
