"""The user's task files: multiple-choice questions, and questions with a generated answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qra_bo.finetune.data.jsonl import json_objects, question_prompt, read_text, to_record
from qra_bo.utils.errors import DataError

FILE_ENDINGS = (".jsonl", ".json")
MARK = "####"
"""Mark before the short answer in a worked one, as in GSM8K."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with its possible continuations, the right one at ``gold``."""

    prompt: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True, slots=True)
class Written:
    """A question whose answer the model generates; it is compared with ``target``."""

    prompt: str
    target: str


def task_name(task: str) -> str:
    """Return the name of a task of ``eval.tasks`` in its scores; for a file, its name without folder and ending."""
    return Path(task).stem if task.endswith(FILE_ENDINGS) else task


def read_task_file(path: Path) -> list[Choice] | list[Written]:
    """Return every question of a JSON or JSONL file.

    Objects with ``question``, ``choices`` (at least two texts) and ``answer`` (the index of the right one, or its text)
    are multiple choice; all others are training records of ``data=jsonl``, with their prompts.

    Raises:
        DataError: If the file can't be read, is empty, mixes both kinds, or a record is malformed; names the line.
    """
    items = [_item(fields, where) for where, fields in json_objects(read_text(path), str(path))]
    if not items:
        raise DataError(f"{path} is empty; expected one JSON object a line with question, choices and answer, or with "
                        "the fields of a training record")
    choices = [item for item in items if isinstance(item, Choice)]
    written = [item for item in items if isinstance(item, Written)]
    if choices and written:
        raise DataError(f"{path} holds {len(choices)} multiple-choice questions and {len(written)} others; give each "
                        "kind a file of its own")
    return choices or written


def _item(fields: Any, where: str) -> Choice | Written:
    if isinstance(fields, Mapping) and "choices" in fields:
        return _choice(fields, where)
    record = to_record(fields, where)
    if not record.prompt:
        raise DataError(f"{where}: a task needs a question; a plain text has none")
    return Written(record.prompt, record.target.strip())


def _choice(fields: Mapping[str, Any], where: str) -> Choice:
    question, choices, answer = (fields.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(question, str):
        raise DataError(f"{where}: the field 'question' must be text, got {type(question).__name__}")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise DataError(f"{where}: 'choices' must be a list of at least two texts")
    if isinstance(answer, str) and choices.count(answer) == 1:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(f"{where}: 'answer' must be the index of the right choice, 0 to {len(choices) - 1}, or its "
                        f"text; got {answer!r}")
    return Choice(question_prompt(question), tuple(choices), answer)


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
