"""Task accuracy of a model in memory by lm-evaluation-harness: its tasks by name, and the user's files."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qra_bo.finetune.evaluation.task_files import FILE_ENDINGS, Choice, Written, read_task_file, same_answer, task_name
from qra_bo.utils.errors import ConfigError, MissingExtraError

SPARE_TOKENS = 16
"""Tokens by which an answer may be longer than the longest target."""
BOOTSTRAPS = 100
"""Samples for standard errors of metrics other than means, which have a formula."""
STOPS = ("\nQuestion:", "\n\n### ", "\nUser:")
"""Texts that end an answer: the beginnings of the next question as ``data=jsonl`` renders it."""


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task.

    Args:
        task: A file's stem, or the harness' name.
        metric: E.g. ``acc``, ``acc_norm``, ``exact_match``.
        value: Its mean over the questions.
        stderr: Standard error of that mean, or ``None`` where the harness gives none.
        questions: Number of questions.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    questions: int


def score_tasks(model: Any, tokenizer: Any, tasks: Sequence[str], *, batch: int,
                limit: int | None = None) -> list[TaskScore]:
    """Score a model in memory; its mode and the global generators of random numbers are restored.

    Args:
        model: A causal language model of transformers or PEFT, quantised or not, on its device.
        tokenizer: Its tokenizer.
        tasks: Files (``.jsonl``, ``.json``) as ``read_task_file`` takes them, or names of the harness' own tasks, whose
            data come from a hub.
        batch: Sequences of one forward pass.
        limit: Number of questions of every task, from the first; ``None`` for all.

    Raises:
        MissingExtraError: If lm-eval is not installed.
        DataError: If a file is malformed.
        ConfigError: If the harness knows no task of a name, or a name is given twice.
    """
    check_tasks(tasks)
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = {Path(t).stem: read_task_file(Path(t).expanduser()) for t in tasks if t.endswith(FILE_ENDINGS)}
    wanted = [_task(Path(t).stem, own[Path(t).stem], tokenizer) if t.endswith(FILE_ENDINGS) else t for t in tasks]
    names = [t for t in wanted if isinstance(t, str)]
    manager = TaskManager(include_defaults=bool(names))
    unknown = [t for t in names if t not in manager.all_tasks]
    if unknown:
        raise ConfigError([f"eval.tasks: the installed lm-eval knows no task {t!r}; give a name that its list of tasks "
                           "has (lm-eval ls tasks), or a file that ends in .jsonl or .json" for t in unknown])
    training, state = model.training, (random.getstate(), np.random.get_state())
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of a model in memory and of data from a callable
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            wrapped = HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch)
            found = simple_evaluate(wrapped, tasks=wanted, task_manager=manager, limit=limit, log_samples=False,
                                    bootstrap_iters=BOOTSTRAPS)
    finally:
        logger.setLevel(level)
        model.train(training)
        random.setstate(state[0])
        np.random.set_state(state[1])
    return _scores(found)


def check_tasks(tasks: Sequence[str]) -> None:
    """Check the tasks before a model is loaded.

    Raises:
        MissingExtraError: If lm-eval is not installed.
        DataError: If a file is malformed.
        ConfigError: If two tasks have one name.
    """
    names = [task_name(t) for t in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"eval.tasks names a task twice: {', '.join(twice)}; give each once (a file goes by its name "
                          "without folder and ending)")
    for t in tasks:
        if t.endswith(FILE_ENDINGS):
            read_task_file(Path(t).expanduser())
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("lm-eval", "eval", "eval.tasks") from error


def _task(name: str, items: Sequence[Choice] | Sequence[Written], tokenizer: Any) -> dict[str, Any]:
    """Return the harness' description of a file's questions."""
    from datasets import Dataset

    docs = Dataset.from_list([{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(item).items()}
                              for item in items])
    common = {"task": name, "custom_dataset": lambda **_: {"test": docs}, "test_split": "test", "num_fewshot": 0,
              "doc_to_text": lambda doc: doc["prompt"], "metadata": {"version": 0}}
    if isinstance(items[0], Choice):
        return {**common, "output_type": "multiple_choice", "doc_to_choice": lambda doc: list(doc["choices"]),
                "doc_to_target": lambda doc: doc["gold"],
                "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True}
                                for m in ("acc", "acc_norm")]}
    longest = max(len(tokenizer(item.target)["input_ids"]) for item in items if isinstance(item, Written))
    return {**common, "output_type": "generate_until", "doc_to_target": lambda doc: doc["target"],
            "generation_kwargs": {"until": list(STOPS), "do_sample": False, "max_gen_toks": longest + SPARE_TOKENS},
            "process_results": lambda doc, results: {"exact_match": float(same_answer(results[0], doc["target"]))},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}


def _scores(found: Mapping[str, Any]) -> list[TaskScore]:
    out = []
    for task, metrics in found["results"].items():
        questions = int(found["n-samples"][task]["effective"]) if task in found["n-samples"] else 0
        for key, value in metrics.items():
            metric, _, which = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or isinstance(value, bool) or not which:
                continue
            error = metrics.get(f"{metric}_stderr,{which}")
            label = metric if which == "none" else f"{metric} ({which})"
            out.append(TaskScore(task, label, float(value), float(error) if isinstance(error, float) else None,
                                 questions))
    return out
