"""Hostile names and numbers: nothing hangs, is written elsewhere, or reaches a shell or a terminal."""

import json
import os
import shlex
from pathlib import Path

import pytest
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
