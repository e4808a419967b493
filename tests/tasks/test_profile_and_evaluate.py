"""``task=profile`` on the planted oracle, and ``task=evaluate``: what they print, what they write, what they refuse."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qra_bo.cli.app import main
from qra_bo.config import load_config
from qra_bo.finetune.evaluation import Answer, TaskScore
from qra_bo.pipeline.prepare import make_setting
from qra_bo.sensitivity.profile import profile_from_json
from qra_bo.tasks.answers import AnswerFile
from qra_bo.tasks.evaluate import asks_in_chats
from tests.finetune.test_harness import write

SETTINGS = ["+model=tiny", "data=tiny", "oracle=synthetic", "display=none"]


def test_a_profile_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SETTINGS, "task=profile", f"out={tmp_path}"]) == 0
    profile = profile_from_json(json.loads((tmp_path / "profile.json").read_text()), "profile.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("\t") == ["unit", "t2", "t3", "nf4", "int8", "rank sensitivity"]
    assert [line.split("\t")[0] for line in lines[2:7]] == [*profile.units, "sum"]
    assert float(lines[2].split("\t")[1]) == pytest.approx(profile.quantization_sensitivity[0, 0], abs=1e-5)
    assert float(lines[6].split("\t")[5]) == pytest.approx(profile.require_rank_sensitivity()[:, 31].sum(), rel=1e-3)


@pytest.mark.parametrize("text", ['{"my": "notes"}', "my notes"])
def test_a_file_that_is_no_profile_is_not_written_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(text)
    assert main([*SETTINGS, "task=profile", f"out={tmp_path}"]) == 2
    assert (tmp_path / "profile.json").read_text() == text


def test_a_profile_needs_a_folder_that_can_be_made() -> None:
    assert main([*SETTINGS, "task=profile", "out=/proc/none"]) == 2


def test_tokens_of_codes_are_known_before() -> None:
    common = ["+model=tiny", "data=tiny", "train.length=32", "quantizer.tokens=1000", "data.calibration=3"]
    wanted = {(): 31 * 32, ("quantizer.rounding=rtn",): 0, ("oracle=synthetic",): 0}
    assert {changes: make_setting(load_config([*common, *changes])).code_tokens for changes in wanted} == wanted


@pytest.mark.parametrize(("provenance", "template", "chat"), [
    ({"data_render": "plain"}, "x", False), ({"data_render": "chat"}, None, True), ({"data_render": ""}, "x", True),
    ({}, None, False), (None, "x", True)])
def test_instructions_are_asked_as_the_run_was_trained(provenance: Any, template: str | None, chat: bool,
                                                       tmp_path: Path) -> None:
    if provenance is not None:
        (tmp_path / "best.json").write_text(json.dumps({"provenance": provenance}))
    assert asks_in_chats(tmp_path, SimpleNamespace(chat_template=template)) is chat


def test_scores_are_printed_where_the_folder_takes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    score = TaskScore("t", "acc", 0.5, None, 2)
    monkeypatch.setattr("qra_bo.export.load.keep_unpacked", lambda _: None)
    monkeypatch.setattr("qra_bo.finetune.evaluation.check_tasks", lambda _: None)  # lm-eval is an extra
    monkeypatch.setattr("qra_bo.export.load.load", lambda *_, **__: (None, SimpleNamespace(chat_template=None)))
    monkeypatch.setattr("qra_bo.finetune.evaluation.score_named", lambda *_, **__: [score])
    monkeypatch.setattr("qra_bo.tasks.evaluate.metadata.version", lambda _: "0")
    monkeypatch.setattr("qra_bo.tasks.evaluate.write_json", full)
    assert main(["task=evaluate", f"out={tmp_path}", "eval.tasks=[t]"]) == 2
    out, err = capsys.readouterr()
    assert "t: acc 0.5000, 2 questions" in out
    assert "Read-only file system" in err


def test_nothing_is_asked_where_the_other_run_answered_other_questions(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*_: object, **__: object) -> Any:
        yield ["this"], []
        raise AssertionError("it was asked")

    path = write(tmp_path / "t.jsonl", {"question": "1?", "answer": "1"})
    other = AnswerFile(path, {}, [Answer("other", "", "", "", {"exact_match": 1.0})])
    monkeypatch.setattr("qra_bo.export.load.keep_unpacked", lambda _: None)
    monkeypatch.setattr("qra_bo.finetune.evaluation.check_tasks", lambda _: None)  # lm-eval is an extra
    monkeypatch.setattr("qra_bo.export.load.load", lambda *_, **__: (None, SimpleNamespace(chat_template=None)))
    monkeypatch.setattr("qra_bo.finetune.evaluation.answer_file", asked)
    monkeypatch.setattr("qra_bo.tasks.evaluate._others", lambda *_: {path: other})
    monkeypatch.setattr(AnswerFile, "of_run", lambda *_: AnswerFile(tmp_path / "new.jsonl", {}))
    assert main(["task=evaluate", f"out={tmp_path}", f"eval.tasks=[{path}]", "eval.against=elsewhere"]) == 2
    assert "eval.against=elsewhere answered none of the questions of t.jsonl" in capsys.readouterr().err
