"""Hostile names and numbers: nothing hangs, is written elsewhere, or reaches a shell or a terminal."""

import ast
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from qra_bo.export import vllm
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.manifest import Manifest, ModuleRecord
from qra_bo.memory.formats import parse_format
from qra_bo.report.data import parse_events
from qra_bo.report.tables import print_result
from qra_bo.runs import main as runs
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import check_run_folder, replace_text
from tests.export.finished import exported
from tests.export.fixtures import write_finished
from tests.report.fixtures import make_events, write_run


@pytest.mark.parametrize("inside", ["best.json", "oracles/X/checkpoints/a/b"])
def test_a_pipe_in_a_run_is_refused_however_deep(tmp_path: Path, inside: str) -> None:
    path = tmp_path / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(OutputError, match=rf"holds {inside}, which is no regular file"):
        check_run_folder(tmp_path)
    path.unlink()
    check_run_folder(tmp_path)
    path.symlink_to("/dev/zero")
    with pytest.raises(OutputError, match="a symbolic link to"):
        check_run_folder(tmp_path)


def test_a_lock_that_is_a_pipe_keeps_no_listing_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "r", make_events(finished=False))
    (run / ".lock").unlink(missing_ok=True)
    os.mkfifo(run / ".lock")
    assert runs(["list", str(tmp_path)]) == 0
    assert "active" in capsys.readouterr().out


def test_temporary_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".x.json.{os.getpid()}").symlink_to(victim)
    replace_text(tmp_path / "x.json", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "x.json").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["victim", "x.json"]


def test_lines_to_copy_into_a_shell_run_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b;$(c)"
    folder.mkdir()
    for fmt, base in (("sym4-g64", "compressed_tensors"), ("nf4", "export/merged")):
        modules = {"layers.0.mlp.x\n$(evil)": ModuleRecord(parse_format(fmt), (64, 64), 4, 8.0, "")}
        manifest = Manifest({}, "float32", "cpu", modules, "", "", None, {})
        monkeypatch.setattr(vllm, "write_adapter", lambda run, folder: [])
        [path] = vllm.write(FinishedRun(folder, {"model": "$(touch evil)", "ranks": [4]}, {}, manifest))
        words = shlex.split(path.read_text(), comments=True)
        assert words[:5] == ["python", "-m", "qra_bo", "task=export", f'out="{folder.resolve()}"']
        assert words[6:9] == ["vllm", "serve", str(folder.resolve() / base)]
        assert not any("evil" in word for word in words)
    console = Console(file=None, width=400, force_terminal=False, record=True)
    print_result(console, parse_events(make_events()), folder)
    lines = console.export_text().splitlines()
    [command] = [shlex.split(line) for line in lines if "task=export" in line]
    assert f'out="{folder}"' in command  # as Hydra reads it
    assert any(f"qra_bo.load({json.dumps(str(folder))})" in line for line in lines)


CODE = "0, x=__import__('pathlib').Path('ran').touch()"
BAD: list[tuple[str, Any]] = [
    *((f"training.{key}", CODE) for key in ("warmup", "length", "batch", "accumulate", "clip", "lr_floor",
                                            "checkpointing")),
    ("training.batch", 10.5), ("training.steps", -1), ("training.trial_steps", 0), ("training.betas", [0.9]),
    ("training", None), ("training", []), ("model", 'a\n"""\nimport evil\n"""'), ("model", 3), ("units", "model"),
    ("units", ["a", "b", "c"]), ("bits", []), ("bits", [True, 4]), ("ranks", {"a": 1}), ("formats", [1, 2]),
    ("memory", None), ("memory.budget_bytes", "x"), ("baselines", 7), ("baselines", [{"name": "a"}]),
    ("versus_best_uniform", [1]), ("versus_best_uniform.low", None), ("delivered", {}), ("objective", None),
    ("provenance", "x"), ("learning_rate", "2e-3"), ("lr_rule", "evil"), ("searched", 1), ("loss", [1]),
    ("alpha_over_rank", "%n"), *(("prediction", odd) for odd in (True, "x", [None], {"a": 1}, {"mean": None})),
    ("prediction", {"label": "x", "mean": "y", "low": 1.0, "high": 1.0, "steps": 3})]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_values_of_a_wrong_type_in_a_result_reach_no_export(tmp_path: Path, key: str, value: Any) -> None:
    run = write_finished(tmp_path / "run")
    best = json.loads((run / "best.json").read_text())
    *groups, leaf = key.split(".")
    inner = best[groups[0]] if groups else best
    inner[leaf] = value
    (run / "best.json").write_text(json.dumps(best))
    with pytest.raises(OutputError, match=key.split(".")[0]):
        exported(run, ["card", "trl"])
    assert not (run / "export").exists()


@pytest.mark.parametrize("changes", [
    *({"provenance": odd} for odd in ({"a": "\ud800"}, {"\ud83d": 1}, {"a": {"b": ["\udfff"]}}, {"a\n# b": "c\n# d"})),
    *({"searched": False, "prediction": {"label": "predicted", "mean": mean, "low": low, "high": 1.0, "steps": 3}}
      for mean, low in ((None, None), (None, 0.5), (0.5, None), (0.5, 0.25), (0.5, 1.0)))])
def test_odd_values_of_a_right_type_reach_the_card_as_text(tmp_path: Path, changes: dict[str, Any]) -> None:
    [card] = exported(write_finished(tmp_path / "run", **changes), ["card"])
    text = card.read_text(encoding="utf-8")
    assert ("# b" in text.splitlines(), "# d" in text.splitlines()) == (False, False)


@pytest.mark.parametrize("name", ["it's \U0001f600", 'a"""\\', "b\\", "Ünï\U0001f680{{ 1 }}", "$(x)`y`", "#: x"])
def test_names_in_exports_are_read_back_as_they_were(tmp_path: Path, name: str) -> None:
    run = write_finished(tmp_path / "run", base=name, model=name)
    card, script = exported(run, ["card", "trl"])
    assert yaml.safe_load(card.read_text(encoding="utf-8").split("---")[1])["base_model"] == name
    tree = ast.parse(script.read_text(encoding="utf-8"))
    assert [type(node).__name__ for node in tree.body[:2]] == ["Expr", "Import"]
    assert repr(name) in script.read_text(encoding="utf-8")
