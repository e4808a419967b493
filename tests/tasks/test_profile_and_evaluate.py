"""``task=profile`` on the planted oracle, and ``task=evaluate``: what they print, what they write, what they refuse."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qra_bo.cli.app import main
from qra_bo.config import load_config
from qra_bo.finetune.evaluation import TaskScore
from qra_bo.pipeline.prepare import make_setting
from qra_bo.sensitivity.io import load_profile, save_profile
from qra_bo.tasks.evaluate import asks_in_chats
from qra_bo.utils.errors import ProfileError

SETTINGS = ["+model=tiny", "data=tiny", "oracle=synthetic", "display=none"]


@pytest.fixture(name="profile")
def make_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main([*SETTINGS, "task=profile", f"out={tmp_path / 'p'}"]) == 0
    capsys.readouterr()
    return tmp_path / "p" / "profile.json"


@pytest.mark.parametrize("words", [["task=search"], ["task=profile"], ["task=finetune", "allocation=uniform:4,4"]])
def test_without_weights_there_is_the_memory_plan_and_status_2(words: list[str], tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "+model=llama2_70b", "data=tiny", "display=none", f"out={tmp_path / 'r'}", "device=cpu"]) == 2
    out, err = capsys.readouterr()
    assert "Where the bytes go" in out
    assert "on a CPU needs about" in err


def test_a_profile_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SETTINGS, "task=profile", f"out={tmp_path}"]) == 0
    profile = load_profile(tmp_path / "profile.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("\t") == ["unit", "int2-g64", "int3-g64", "nf4", "int8", "rank sensitivity"]
    assert [line.split("\t")[0] for line in lines[2:7]] == [*profile.units, "sum"]
    assert float(lines[2].split("\t")[1]) == pytest.approx(profile.quantization_sensitivity[0, 0], abs=1e-5)
    assert float(lines[6].split("\t")[5]) == pytest.approx(profile.require_rank_sensitivity()[:, 31].sum(), rel=1e-3)


def test_a_given_profile_is_used_and_named_with_its_checksum(profile: Path) -> None:
    config = load_config([*SETTINGS, f"sensitivity.path={profile}", "bits=[2,4]"])
    found = make_setting(config).profile
    assert found is not None
    assert found.formats == ("int2-g64", "nf4")
    assert found.quantization_sensitivity.tolist() == load_profile(profile).quantization_sensitivity[:, [0, 2]].tolist()
    assert (found.quantization_se is None) == (load_profile(profile).quantization_se is None)
    assert "profile.json, sha256 " in found.source


def test_given_profile_still_costs_codes_and_initialisation() -> None:
    common = ["+model=tiny", "data=tiny", "train.length=32", "quantizer.tokens=1000", "data.calibration=3"]
    wanted = {(): (0, 31 * 32), ("quantizer.rounding=rtn",): (0, 0),
              ("adapter.init=cloq",): (0, 2 * 31 * 32), ("adapter.init=cloq", "quantizer.rounding=rtn"): (0, 3 * 32),
              ("oracle=synthetic",): (0, 0)}
    assert {changes: make_setting(load_config([*common, *changes])).tokens_before for changes in wanted} == wanted


def test_a_search_uses_it_at_no_cost(tmp_path: Path, profile: Path) -> None:
    assert main([*SETTINGS, f"sensitivity.path={profile}", f"out={tmp_path / 'r'}", "effort=quick", "method=random",
                 "effort.max_full_trials=2", "confirm.seeds=0", ]) == 0
    events = [json.loads(line) for line in (tmp_path / "r" / "trials.jsonl").read_text().splitlines()]
    event = next(e for e in events if e["event"] == "profile")
    assert (event["training_tokens"], event["forward_tokens"]) == (0, 0)
    assert "sha256 " in event["source"]


def test_formats_that_a_profile_lacks_are_named(profile: Path) -> None:
    with pytest.raises(ProfileError, match=r"lacks the formats \['fp16'\]"):
        make_setting(load_config([*SETTINGS, f"sensitivity.path={profile}", "bits=[4,16]"]))


def test_method_that_needs_i_r_refuses_profile_without(
        tmp_path: Path, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_profile(replace(load_profile(profile), rank_sensitivity=None), profile)
    out = tmp_path / "r"
    assert main([*SETTINGS, f"sensitivity.path={profile}", f"out={out}", "method=evolution"]) == 2
    assert "no I_r" in capsys.readouterr().err
    assert not (out / "trials.jsonl").exists()


def test_tasks_are_read_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "plain"}\n')
    assert main(["task=evaluate", f"out={tmp_path}", f"eval.tasks=[{tmp_path / 't.jsonl'}]"]) == 2
    assert "line 1: a task needs a question" in capsys.readouterr().err


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
    monkeypatch.setattr("qra_bo.finetune.evaluation.check_tasks", lambda _: None)  # lm-eval is an extra
    monkeypatch.setattr("qra_bo.export.load.load", lambda *_, **__: (None, SimpleNamespace(chat_template=None)))
    monkeypatch.setattr("qra_bo.finetune.evaluation.score_tasks", lambda *_, **__: [score])
    monkeypatch.setattr("qra_bo.tasks.evaluate.metadata.version", lambda _: "0")
    monkeypatch.setattr("qra_bo.tasks.evaluate.write_json", full)
    assert main(["task=evaluate", f"out={tmp_path}", "eval.tasks=[t]"]) == 2
    out, err = capsys.readouterr()
    assert "t: acc 0.5000, 2 questions" in out
    assert "Read-only file system" in err
