"""Task accuracy of one configuration: fine-tuned as for its loss, then tested with lm-evaluation-harness."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.table1.adalora import AdaLoraSettings
from bench.table1.adalora_run import AdaLoraTask, run_adalora
from bench.table1.recipe import start_of
from bench.table1.starts import starting_by
from qra_bo.finetune.evaluation import FILE_ENDINGS, TaskScore, answer_file, check_tasks, score_named, scores_of
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.oracle.protocol import Progress
from qra_bo.space import Allocation
from qra_bo.trials import TrialSpec


def score_tasks(model: Any, tokenizer: Any, tasks: Sequence[str], *, batch: int, limit: int | None) -> list[TaskScore]:
    """Return the scores at the harness' tasks and at files, see ``score_named`` and ``answer_file``."""
    check_tasks(tasks)
    scores = score_named(model, tokenizer, [t for t in tasks if not t.endswith(FILE_ENDINGS)], batch=batch, limit=limit)
    for path in (Path(t) for t in tasks if t.endswith(FILE_ENDINGS)):
        asked = answer_file(model, tokenizer, path, batch=batch, limit=limit)  # of questions and new answers
        scores += scores_of(path.stem, [answer for _, answers in asked for answer in answers])
    return scores


def answer_tasks(oracle: FinetuneOracle, allocation: Mapping[str, Any], init: str, initial_rank: int | None, steps: int,
                 train_seed: int, learning_rate: float, tasks: Sequence[str], batch: int,
                 limit: int | None, progress: Progress) -> dict[str, Any]:
    """Train one configuration and score it at the tasks, in the oracle's process.

    Args:
        oracle: Holds the model.
        allocation: Formats and ranks, as JSON; with AdaLoRA the target ranks.
        init: Adapter initialisation.
        initial_rank: AdaLoRA's, or ``None`` for LoRA.
        steps: Optimiser steps.
        train_seed: Seed of data order and initialisation.
        learning_rate: As in ``TrialSpec``.
        tasks: Names of the harness' tasks, or files.
        batch: Sequences of one forward pass.
        limit: Questions of every task, or ``None`` for all.
        progress: Called after every step.

    Returns:
        JSON values: ``state`` and ``message`` of the training, and ``scores``, a list of ``TaskScore`` fields.

    Raises:
        MissingExtraError: If lm-eval is not installed.
        ConfigError: If the harness knows no task of a name.
        DataError: If a file is malformed.
    """
    chosen = Allocation.from_json(allocation)
    scores: list[dict[str, Any]] = []

    def score() -> None:
        scores.extend(asdict(s) for s in score_tasks(oracle.model, oracle.tokenizer, tasks, batch=batch, limit=limit))

    if initial_rank is not None:
        task = AdaLoraTask(chosen.formats, AdaLoraSettings(initial_rank, chosen.ranks[0]), steps, train_seed,
                           "validation", learning_rate, False)
        found = run_adalora(oracle, task, progress, score)
        return {"state": found["state"], "message": found["message"], "scores": scores}
    with starting_by(oracle, init):
        spec = TrialSpec(chosen, steps, steps, train_seed, learning_rate, codes=start_of(init))
        measured = oracle.evaluate(spec, progress, score)
    return {"state": measured.state.value, "message": measured.message, "scores": scores}
