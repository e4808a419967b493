"""Size of the user's text, read once, before a run starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from qra_bo.config import load_config
from qra_bo.finetune.data.load import byte_tokenizer, load_data
from qra_bo.pipeline import text
from qra_bo.pipeline.prepare import make_setting
from qra_bo.pipeline.text import RunText, text_size
from qra_bo.study.lines import begun_study
from qra_bo.utils.errors import JournalError
from tests.report.fixtures import make_events, write_run


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
    assert (size.records, size.training_records, size.basis, size.source) == (
        10, 8, "counted by the model's tokenizer", str(file))
    assert size.training_tokens == prepared.train.facts.used_tokens
    assert size.sequences == len(prepared.train)
    assert size.left_out == prepared.left_out


def test_a_large_text_is_counted_by_a_sample(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SAMPLE", 4)
    size = text_size(load_config(words(file)))
    assert size.basis == "estimated from 4 of them that the model's tokenizer counted"
    assert size.training_tokens == pytest.approx(8 * 65, abs=2 * 32)  # the short record counts twice or not at all
    assert size.sequences == pytest.approx(size.training_tokens / 32, rel=0.5)


def test_without_a_tokenizer_each_conversation_counts_up_to_where_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": f"{i} " * 500}, {"role": "assistant", "content": "y" * (3200 if i else 32)}]})
        + "\n" for i in range(10)))
    size = text_size(load_config(["+model=llama2_7b", "device=cpu", "data=jsonl", f"data.path={path}",
                                  "train.length=512"]))
    assert size is not None
    assert size.training_tokens <= 8 * 512
    assert size.sequences <= 8
    assert "lacks the model's tokenizer; train.length=512 cuts about 59% of the conv" in size.basis


def test_a_run_that_has_ended_keeps_its_text(file: Path, tmp_path: Path) -> None:
    config, events = load_config(words(file, "display=none")), make_events()
    sha256 = load_data(config.data, byte_tokenizer(), 32).sha256
    write_run(tmp_path / "run", [{**e, "data_sha256": sha256} if e["event"] == "provenance" else e for e in events])
    assert RunText(config).show(begun_study(tmp_path / "run")) is None
    file.write_text(file.read_text().replace("9y", "9z"))
    with pytest.raises(JournalError, match="data_sha256"):
        RunText(config).show(begun_study(tmp_path / "run"))
    write_run(tmp_path / "begun", events[:-1])  # whose worker will say so
    assert RunText(config).show(begun_study(tmp_path / "begun")) is None


def test_a_run_reads_the_users_file_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, reads = load_config(words(file, "display=none", "train.batch=1")), list[Any]()
    read = text.read_data
    monkeypatch.setattr(text, "read_data", lambda cfg: reads.append(cfg) or read(cfg))
    monkeypatch.setattr("qra_bo.finetune.data.load.read_data", None)  # nor by another way
    run_text = RunText(config)
    make_setting(config, None, run_text)
    assert run_text.show() == len(load_data(config.data, byte_tokenizer(), 32, read=read(config.data)).train)
    assert reads == [config.data]
