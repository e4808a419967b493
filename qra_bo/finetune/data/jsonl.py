"""Records of the user's JSON or JSONL file; their fields decide how they are read."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from qra_bo.finetune.data.conversations import Conversation, from_messages, from_prompt_and_completion, from_sharegpt
from qra_bo.finetune.data.records import Record
from qra_bo.utils.errors import ConfigError, DataError
from qra_bo.utils.files import strict_json, user_path
from qra_bo.utils.formatting import cut

_ALPACA = ("Below is an instruction that describes a task{with_input}. Write a response that appropriately completes "
           "the request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n")
_UNREAD = ("system", "system_prompt", "history")
"""Fields for which the text of an instruction, a question or a prompt has no place."""
MOST_CHARACTERS = 10**7
"""Characters of a record, a hundred novels or so: a tokenizer takes some 200 bytes for each."""
MOST_NAMED = 5
"""Problems of a source's records that are named."""
FALSE_LABEL, EMPTY_TARGET, REPEATED = "their label is false", "their target text is empty", "they repeat an earlier one"
"""Reasons for which records are left out."""


def read_rows(path: str | None) -> Iterator[tuple[str, Any]]:
    """Return the objects of a file with one JSON object a line, or one JSON list, each with the name of its place.

    Raises:
        DataError: If there is no such file, it is empty, or a line is no JSON; the message names the line.
    """
    if not path:
        raise DataError("data=jsonl needs data.path=FILE (one JSON object a line, or one JSON list); got nothing")
    return json_objects(read_text(user_path(path)), path)


def records_of(rows: Iterable[tuple[str, Any]], max_records: int | None, source: str,
               last_turns: bool = False) -> tuple[list[Record | Conversation], Counter[str]]:
    """Return the records of a source in order, at most ``max_records``, and how many were left out, by reason.

    A record whose ``label`` is false is left out: data sets of preferences mark the answers that are bad so. One whose
    target is empty is left out too: Alpaca has 28. With ``last_turns`` conversations keep their last trained turn.

    Raises:
        DataError: If there is no record, or some are malformed; the message names their places.
    """
    records: list[Record | Conversation] = []
    left_out, refused = Counter[str](), Refused()
    for where, fields in rows:
        if max_records is not None and len(records) == max_records:
            break
        if isinstance(fields, Mapping) and fields.get("label") is False:
            left_out[FALSE_LABEL] += 1
            continue
        with refused.at(where):
            record = to_record(fields, where)
            if last_turns and isinstance(record, Conversation):
                record = replace(record, trained=record.trained[-1:])
            if record.is_empty:
                left_out[EMPTY_TARGET] += 1
            else:
                records.append(record)
    refused.check()
    if not records:
        reasons = "".join(f"; left out, because {reason}: {n:,}" for reason, n in left_out.items())
        lack = "has no record to train on" if left_out else f"is empty; expected one JSON object a line with {KINDS}"
        raise DataError(f"data.path {source!r} {lack}{reasons}")
    return records, left_out


class Refused(dict[str, list[str]]):
    """Places of the records of a source that can't be taken, by problem."""

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Note a ``DataError`` of the block as one of the record at ``where``; a ``TimeoutError`` behind it would come
        of every record, and ends all."""
        try:
            yield
        except DataError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            why = str(error).removeprefix(f"{where}: ")
            self.setdefault(why if why in self or len(self) < MOST_NAMED else "other problems", []).append(where)

    def check(self) -> None:
        """Raise one ``DataError`` for all of them, if any; it names the first places of each problem."""
        count, named = sum(map(len, self.values())), []
        for why, found in self.items():
            places = sorted(found, key=lambda place: (len(place), place))  # splits are shuffled
            others = "".join(f", {place.rpartition(', ')[2]}" for place in places[1:3])
            more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
            named.append(f"{places[0]}{others}{more}: {why}")
        if named:
            raise DataError(f"{f'{count:,} malformed records: ' if count > 1 else ''}{ConfigError(named)}")


def read_text(file: Path) -> str:
    """Return the text of a file. Raises ``DataError`` if it can't be read as UTF-8; the message names the line."""
    if file.exists() and not file.is_file():  # a pipe would wait for ever, a device never end
        raise DataError(f"{file} must be a file; it is a folder, a pipe or a device")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}, line {line}: not UTF-8 text (the byte 0x{error.object[error.start]:02x}); save the "
                        "file as UTF-8, or mend the line") from error
    except OSError as error:
        raise DataError(f"{file} can't be read ({error.strerror}); name a file that you can read") from error


def json_objects(text: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yield each object of a JSON list, or of JSON lines, with the name of its place; in place of a line that is not
    JSON an error that names it. Raises ``DataError`` if a list is not JSON."""
    if text.lstrip().startswith("["):
        try:
            items = strict_json(text)
        except ValueError as error:
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DataError(f"{path}{line}: not valid JSON ({getattr(error, 'msg', error)})") from error
        for i, item in enumerate(items, start=1):
            yield f"{path}, record {i}", item
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, strict_json(line)
        except ValueError as error:
            many = "; jq -c . FILE writes an object of several lines so" if line.strip() == "{" else ""
            yield where, DataError(f"{where}: not valid JSON ({getattr(error, 'msg', error)}); expected one JSON "
                                   f"object a line{many}")


def to_record(fields: Any, where: str) -> Record | Conversation:
    """Return prompt and target, or the conversation, of one object.

    Raises:
        DataError: If it is not an object, has no known fields, a field is malformed, or it is too long; an error in
            its place as it is.
    """
    if isinstance(fields, DataError):
        raise fields
    if not isinstance(fields, Mapping):
        raise DataError(f"{where}: expected a JSON object, got {type(fields).__name__}")
    known = [(any(fields[name] is None for name in names), convert) for names, convert in _CONVERTERS
             if all(name in fields for name in names)]
    if not known:
        names = cut(", ".join(map(repr, fields)), 400) or "none"
        raise DataError(f"{where}: expected {KINDS}; got the fields {names}")
    # Tables of the hub have all columns in every row: those of a row's own kind are not None.
    try:
        record = min(known, key=lambda found: found[0])[1](fields, where)
    except RecursionError as error:
        raise DataError(f"{where}: its objects are nested too deeply to be read") from error
    text = record.messages_json + record.tools_json if isinstance(record, Conversation) \
        else record.prompt + record.target
    check_characters(text, where)
    if record.characters > MOST_CHARACTERS:
        raise DataError(f"{where}: a record of {record.characters:,} characters; more than {MOST_CHARACTERS:,} take "
                        "too much memory to tokenise at once: cut it into several records")
    return record


def check_characters(text: str, where: str) -> None:
    """Refuse a text that no file can hold. Raises ``DataError``."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{where}: the text holds half of a surrogate pair, or a byte that is not UTF-8: no character")


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: the field {name!r} must be text, got {type(value).__name__}")
    return value


def _refuse_unread(fields: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuse fields of which the record's text would hold nothing: an answer would be learned without its reasons."""
    unread = next((name for name in names if fields.get(name)), None)
    if unread is not None:
        raise DataError(f"{where}: the field {unread!r} has no place in the text of a record of this kind and would be "
                        "lost; give prompt and completion as the model shall see them, or messages")


def _instruction(fields: Mapping[str, Any], where: str) -> Record:
    _refuse_unread(fields, ("context", *_UNREAD), where)
    instruction = _text(fields, "instruction", where)
    extra = _text(fields, "input", where) if fields.get("input") else ""
    prompt = _ALPACA.format(with_input=", paired with an input that provides further context" if extra else "",
                            instruction=instruction, input=f"### Input:\n{extra}\n\n" if extra else "")
    return Record(prompt, _text(fields, "output", where), f"{instruction}\n\n{extra}" if extra else instruction)


def question_prompt(question: str) -> str:
    """Return the prompt of a question."""
    return f"Question: {question}\nAnswer:"


def _question(question: str, answer: str) -> Record:
    return Record(question_prompt(question), f" {answer}", question)


def _question_and_answer(fields: Mapping[str, Any], where: str) -> Record:
    _refuse_unread(fields, ("context", *_UNREAD), where)
    return _question(_text(fields, "question", where), _text(fields, "answer", where))


def _hc3(fields: Mapping[str, Any], where: str) -> Record:
    answers = fields["human_answers"]
    if not isinstance(answers, list) or not answers or not isinstance(answers[0], str):
        raise DataError(f"{where}: the field 'human_answers' must be a list of texts")
    return _question(_text(fields, "question", where), answers[0])


def _completion(fields: Mapping[str, Any], where: str) -> Record | Conversation:
    if fields.get("label") not in (None, True):
        raise DataError(f"{where}: the field 'label' beside prompt and completion is true for good answers, false for "
                        f"bad ones, which are left out; got {fields['label']!r}: write it so, or take it away")
    if isinstance(fields["prompt"], list) and isinstance(fields["completion"], list):
        return from_prompt_and_completion(fields, where)
    _refuse_unread(fields, _UNREAD, where)
    prompt = _text(fields, "prompt", where)
    return Record(prompt, _text(fields, "completion", where), prompt)


_CONVERTERS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any], str], Record | Conversation]], ...] = (
    (("instruction", "output"), _instruction), (("prompt", "completion"), _completion),
    (("question", "human_answers"), _hc3), (("question", "answer"), _question_and_answer),
    (("messages",), from_messages), (("conversations",), from_sharegpt),
    (("text",), lambda f, w: Record("", _text(f, "text", w))),
)
KINDS = "the fields instruction/input/output, prompt/completion, question/answer, messages, conversations or text"
