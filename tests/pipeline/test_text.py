"""Size of the user's text, read once, before a run starts."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qra_bo.cli.app import main
from qra_bo.config import load_config
from qra_bo.finetune.data.load import byte_tokenizer, data_notes, load_data
from qra_bo.finetune.models import load
from qra_bo.pipeline import text
from qra_bo.pipeline.prepare import make_setting
from qra_bo.pipeline.text import RunText, text_size
from qra_bo.report.example import print_data


@pytest.fixture(name="file")
def make_file(tmp_path: Path) -> Path:
    """Nine records of 64 characters and one of 32."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(i) + (63 if i else 31) * "y"}) + "\n" for i in range(10)))
    return path


def words(file: Path, *more: str) -> list[str]:
    return ["+model=tiny", "device=cpu", "data=jsonl", f"data.path={file}", "train.length=32", *more]


def test_a_text_is_counted_by_the_models_tokenizer(file: Path) -> None:
    config = load_config(words(file))
    size, prepared = text_size(config), load_data(config.data, byte_tokenizer(), 32)
    assert size is not None
    assert (size.records, size.training_records, size.basis, size.source) == (
        10, 8, "counted by the model's tokenizer", str(file))
    assert size.training_tokens == prepared.train.facts.used_tokens
    assert size.sequences == len(prepared.train)


def test_a_large_text_is_counted_by_a_sample(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SAMPLE", 4)
    size = text_size(load_config(words(file)))
    assert size is not None
    assert size.basis == "estimated from 4 of them that the model's tokenizer counted"
    assert size.training_tokens == pytest.approx(8 * 65, abs=2 * 32)  # the short record counts twice or not at all
    assert size.sequences == pytest.approx(size.training_tokens / 32, rel=0.5)


def test_without_a_tokenizer_tokens_are_estimated_from_characters(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("qra_bo.finetune.models.hub._Repository.local", lambda self, files: None)
    size = text_size(load_config([*words(file), "+model=llama2_7b"][1:]))
    assert size is not None
    assert (size.training_records, size.cut_share) == (8, None)
    assert size.training_tokens in (round(512 / 3.2), round(480 / 3.2))
    assert size.sequences == pytest.approx(size.training_tokens / 32, abs=0.02)
    assert size.basis.endswith("embedded text has; this machine lacks the model's tokenizer")
    assert load.tokenizer_at_hand(load_config(["+model=llama2_7b"]).model) is None


def test_a_run_reads_the_users_file_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, reads = load_config(words(file, "display=none", "train.batch=1")), list[Any]()
    read = text.read_data
    monkeypatch.setattr(text, "read_data", lambda cfg: reads.append(cfg) or read(cfg))
    monkeypatch.setattr("qra_bo.finetune.data.load.read_data", None)  # nor by another way
    run_text = RunText(config)
    make_setting(config, None, run_text)
    assert run_text.show() == len(load_data(config.data, byte_tokenizer(), 32, read=read(config.data)).train)
    assert reads == [config.data]


def test_the_plan_shows_text_and_time_as_lines_and_as_json(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    assert main(words(file, "task=memory")) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "10 records (left out as repeats: 1), 8 of them for training;" in said
    assert "tokens (counted by the model's tokenizer)" in said
    assert "Time with effort=normal, estimated from the number of operations: search" in said
    assert main(words(file, "task=memory", "memory.format=json")) == 0
    stated = json.loads(capfd.readouterr().out)
    assert stated["text"]["training_records"] == 8
    config, out = load_config(words(file)), io.StringIO()
    data = load_data(config.data, byte_tokenizer(), 32)
    print_data(Console(file=out, width=120), data)
    assert "left out as repeats of an earlier record: 1" in out.getvalue()
    assert [note for note in data_notes(config.data, data) if note.startswith("repeats of an earlier record")]


def test_a_plan_warns_of_answers_that_a_run_would_cut(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i), "completion": 90 * "z"}) + "\n" for i in range(9)))
    assert main(words(path, "task=memory")) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "66% of its answer tokens lie beyond train.length: a run ends with a message" in said


def test_a_missing_file_ends_with_2_after_the_plan(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words(Path("nowhere.jsonl"), "task=memory", "budget=10")) == 2
    said = capfd.readouterr()
    assert "Where the bytes go" in said.out
    assert "Next:" not in said.out
    assert "a budget of 10 bytes (a bare number means bytes) is below the smallest allocation" in said.err
    assert "there is no file 'nowhere.jsonl'" in said.err
