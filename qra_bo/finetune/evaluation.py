"""Task accuracy of a model in memory by lm-evaluation-harness: its tasks by name, and the user's files."""

import hashlib
import io
import logging
import random
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qra_bo.finetune.data.chat_template import ChatTemplate
from qra_bo.finetune.data.conversations import Conversation
from qra_bo.finetune.data.jsonl import Refused, check_characters, json_objects, question_prompt, read_text, to_record
from qra_bo.finetune.data.records import Record
from qra_bo.utils.errors import ConfigError, DataError, MissingExtraError
from qra_bo.utils.files import user_path

FILE_ENDINGS = (".jsonl", ".json")
MARK = "####"
"""Mark before the short answer in a worked one, as in GSM8K."""
_NUMBER = re.compile(r"-?\d+(?:,\d+)*(?:\.\d+)?")
MOST_TOKENS = 1024
"""Tokens of the longest answer that is waited for."""
SPARE_TOKENS = 16
"""Tokens by which an answer may be longer than the longest target."""
AT_ONCE = 16
"""Questions of a file between two looks at what is answered."""
BOOTSTRAPS = 100
"""Samples for standard errors of metrics other than means, which have a formula."""
STOPS = ("\nQuestion:", "\n\n### ", "\nUser:")
"""Texts that end an answer: the beginnings of the next question as ``data=jsonl`` renders it."""
Question = dict[str, Any]
"""A ``prompt`` with its possible ``choices`` and the index ``gold`` of the right one, or with the ``target`` that the
answer is compared with. A conversation as the prompt asks for its last trained turn, by the tokenizer's template."""


def task_name(task: str) -> str:
    """Return the name of a task of ``eval.tasks`` in its scores; for a file, its name without folder and ending."""
    return Path(task).stem if task.endswith(FILE_ENDINGS) else task


def read_task_file(path: Path, chat: bool = False) -> list[Question]:
    """Return every question of a JSON or JSONL file.

    Objects with ``question``, ``choices`` (at least two texts) and ``answer`` (the index of the right one, or its text)
    are multiple choice; all others are training records of ``data=jsonl``, with prompts, or by ``chat`` conversations.

    Raises:
        DataError: If the file can't be read, is empty, mixes both kinds, or records are malformed; names the lines.
    """
    items, refused = list[Question](), Refused()
    for where, fields in json_objects(read_text(path), str(path)):
        with refused.at(where):
            items.append(_choice(fields, where) if isinstance(fields, Mapping) and "choices" in fields
                         else _written(fields, where, chat))
    refused.check()
    if not items:
        raise DataError(f"{path} is empty; expected one JSON object a line with question, choices and answer, or with "
                        "the fields of a training record")
    choices = sum("choices" in item for item in items)
    if 0 < choices < len(items):
        raise DataError(f"{path} holds {choices} multiple-choice questions and {len(items) - choices} others; give "
                        "each kind a file of its own")
    return items


def _written(fields: Any, where: str, chat: bool) -> Question:
    record = to_record(fields, where)
    if isinstance(record, Record):
        if not record.prompt:
            raise DataError(f"{where}: a task needs a question; a plain text has none")
        prompt, target = record.conversation if chat and record.asked else record.prompt, record.target.strip()
    else:
        prompt, target = record, str(record.messages[record.trained[-1]]["content"]).strip()
    if not target:
        raise DataError(f"{where}: a task needs an answer; this one has no text")
    return {"prompt": prompt, "target": target}


def _choice(fields: Mapping[str, Any], where: str) -> Question:
    question, choices, answer = (fields.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(question, str):
        raise DataError(f"{where}: the field 'question' must be text, got {type(question).__name__}")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices) or \
            len({*choices}) < max(2, len(choices)):
        raise DataError(f"{where}: 'choices' must be a list of at least two different texts")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(f"{where}: 'answer' must be the index of the right choice, 0 to {len(choices) - 1}, or its "
                        f"text; got {repr(answer)[:80]}")
    for text in (question, *choices):
        check_characters(text, where)
    return {"prompt": question_prompt(question), "choices": choices, "gold": answer}


def same_answer(written: str, target: str) -> bool:
    """Whether a generated text gives the target's answer.

    For a worked target (with ``####``) the short answer counts: the text after its own mark, or its last number. Else
    the first line must be the target's, but for spaces.
    """
    if MARK in target:
        wanted = _plain(target.rsplit(MARK, 1)[1])
        if MARK in written:
            return _plain(written.split(MARK, 1)[1].strip().split("\n")[0]) == wanted
        numbers = _NUMBER.findall(written)
        return bool(numbers) and _plain(numbers[-1]) == wanted
    return _plain(written.strip().split("\n")[0]) == _plain(target.split("\n")[0])


def _plain(text: str) -> str:
    """Remove commas in numbers, a final full stop and repeated spaces."""
    return re.sub(r"(?<=\d),(?=\d)", "", " ".join(text.split())).rstrip(".")


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task.

    Args:
        task: A file's stem, or the harness' name.
        metric: E.g. ``acc``, ``acc_norm``, ``exact_match``.
        value: Mean over the questions.
        stderr: Standard error of the mean; ``None`` where the harness gives none.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    questions: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One question of a file and what a model answered.

    Args:
        question: Digest of prompt and target: answers of two models to one question have the same.
        prompt: As the model read it.
        target: The right answer.
        answer: The text that it wrote, or the choice of the largest likelihood.
        right: 0 or 1 by metric.
    """

    question: str
    prompt: str
    target: str
    answer: str
    right: Mapping[str, float]


def score_named(model: Any, tokenizer: Any, tasks: Sequence[str], *, batch: int,
                limit: int | None = None) -> list[TaskScore]:
    """Score a model in memory on the harness' own ``tasks``, whose data come from a hub; its mode and the global
    generators of random numbers are restored. A forward pass takes ``batch`` sequences; ``limit`` keeps the first
    questions of every task. Raises ``ConfigError`` if the harness knows no task of a name.
    """
    if not tasks:
        return []
    from lm_eval.tasks import TaskManager  # an extra
    manager = TaskManager(include_defaults=True)
    unknown = [t for t in tasks if t not in manager.all_tasks]
    if unknown:
        raise ConfigError([f"eval.tasks: the installed lm-eval knows no task {t!r}; give a name that its list of tasks "
                           "has (lm-eval ls tasks), or a file that ends in .jsonl or .json" for t in unknown])
    found = _evaluated(model, tokenizer, tasks, manager, batch, limit=limit, log_samples=False)
    scores = []
    for task, metrics in found["results"].items():
        questions = int(found["n-samples"][task]["effective"]) if task in found["n-samples"] else 0
        for key, value in metrics.items():
            metric, _, which = key.partition(",")
            if not which or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{which}")
            scores.append(TaskScore(task, metric if which == "none" else f"{metric} ({which})", float(value),
                                    float(error) if isinstance(error, float) else None, questions))
    return scores


def answer_file(model: Any, tokenizer: Any, path: Path, *, batch: int, limit: int | None = None, chat: bool = False,
                known: Container[str] = ()) -> Iterator[tuple[list[str], list[Answer]]]:
    """Ask a model in memory the questions of a file (``read_task_file``, which takes ``chat``), ``AT_ONCE`` at a time.

    Yields the digests of all questions beside the new answers in the file's order, at first without any. Texts are made
    greedily, ``batch`` sequences at once; ``limit`` keeps the first questions; digests that are ``known`` are left out.
    """
    from lm_eval.tasks import TaskManager  # an extra
    template, manager = ChatTemplate(tokenizer), TaskManager(include_defaults=False)
    every = read_task_file(path, chat)
    longest = max((len(tokenizer(item["target"])["input_ids"]) for item in every if "target" in item), default=0)
    items = [{**item, "prompt": template.question(item["prompt"])} if isinstance(item["prompt"], Conversation) else item
             for item in every[:limit]]
    distinct = {_digest(item): item for item in items}  # repeats would narrow intervals
    digests = list(distinct)
    yield digests, []
    missing = [item for digest, item in distinct.items() if digest not in known]
    for start in range(0, len(missing), AT_ONCE):
        asked = missing[start:start + AT_ONCE]
        with redirect_stderr(io.StringIO()):  # its bars; the caller says how far it is
            found = _evaluated(model, tokenizer, [_task(path.stem, asked, longest)], manager, batch, log_samples=True)
        by_number = {sample["doc_id"]: sample for sample in found["samples"][path.stem]}
        yield digests, [_answer(item, by_number[i]) for i, item in enumerate(asked)]


def scores_of(task: str, answers: Sequence[Answer]) -> list[TaskScore]:
    """Return the share of right answers by metric, with its standard error."""
    table = {metric: [a.right[metric] for a in answers] for metric in (answers[0].right if answers else ())}
    return [TaskScore(task, metric, float(np.mean(right)), float(np.std(right, ddof=1) / np.sqrt(len(right)))
                      if len(right) > 1 else None, len(right)) for metric, right in table.items()]


def _digest(item: Question) -> str:
    return hashlib.sha256(repr((item["prompt"], _right(item), item.get("choices"))).encode()).hexdigest()[:16]


def _right(item: Question) -> str:
    return str(item["choices"][item["gold"]] if "choices" in item else item["target"])


def _answer(item: Question, sample: Mapping[str, Any]) -> Answer:
    if "choices" in item:
        likelihoods = [float(response[0][0]) for response in sample["resps"]]
        written = item["choices"][int(np.argmax(likelihoods))]
    else:
        written = str(sample["resps"][0][0])
    return Answer(_digest(item), item["prompt"], _right(item), written,
                  {metric: float(sample[metric]) for metric in sample["metrics"]})


def _evaluated(model: Any, tokenizer: Any, tasks: Sequence[Any], manager: Any, batch: int,
               **options: Any) -> Mapping[str, Any]:
    """Return what the harness finds; the model's mode and the global generators of random numbers are restored."""
    from lm_eval import evaluator  # an extra
    from lm_eval.models.huggingface import HFLM
    training, state = model.training, (random.getstate(), np.random.get_state())
    asks = evaluator.get_git_commit_hash, evaluator.add_env_info
    # Of git and other programs it asks what nothing here reads, for seconds each time, and git complains on the screen.
    evaluator.get_git_commit_hash, evaluator.add_env_info = str, dict
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of a model in memory and of data from a callable
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            wrapped = HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch)
            return dict(evaluator.simple_evaluate(wrapped, tasks=list(tasks), task_manager=manager,
                                                  bootstrap_iters=BOOTSTRAPS, **options) or {})
    finally:
        logger.setLevel(level)
        evaluator.get_git_commit_hash, evaluator.add_env_info = asks
        model.train(training)
        random.setstate(state[0])
        np.random.set_state(state[1])


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
            read_task_file(user_path(t))
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("lm-eval", "eval", "eval.tasks") from error


def _task(name: str, items: Sequence[Question], longest: int) -> dict[str, Any]:
    """Return the harness' description of some of a file's questions, whose longest target has ``longest`` tokens."""
    from datasets import Dataset  # comes with the extra
    docs = Dataset.from_list(list(items))
    common = {"task": name, "custom_dataset": lambda **_: {"test": docs}, "test_split": "test", "num_fewshot": 0,
              "doc_to_text": lambda doc: doc["prompt"], "metadata": {"version": 0}}
    if "choices" in items[0]:
        return {**common, "output_type": "multiple_choice", "doc_to_choice": lambda doc: doc["choices"],
                "doc_to_target": lambda doc: doc["gold"],
                "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True}
                                for m in ("acc", "acc_norm")]}
    return {**common, "output_type": "generate_until", "doc_to_target": lambda doc: doc["target"],
            "generation_kwargs": {"until": list(STOPS), "do_sample": False,
                                  "max_gen_toks": min(longest + SPARE_TOKENS, MOST_TOKENS)},
            "process_results": lambda doc, results: {"exact_match": float(same_answer(results[0], doc["target"]))},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
