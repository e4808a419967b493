"""The folder of a run: named in the message of one that was stopped, and taken again."""

import signal
from pathlib import Path

import pytest

import qra_bo
from qra_bo.config import load_config
from qra_bo.pipeline.folders import run_folder
from qra_bo.study.engine import Engine
from qra_bo.study.signals import RunInterrupted
from qra_bo.utils.errors import OutputError

PLANTED = ["+model=tiny", "data=tiny", "oracle=synthetic", "display=none", "effort=quick"]


def test_a_stopped_run_names_the_folder_that_the_same_command_takes(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(engine: Engine) -> None:
        engine.folder.mkdir(parents=True)
        (engine.folder / "trials.jsonl").touch()
        raise RunInterrupted(signal.SIGINT)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Engine, "run", stop)
    with pytest.raises(RunInterrupted) as stopped:
        qra_bo.search([*PLANTED, "budget=8MB"])
    named = str(stopped.value).removeprefix("stopped by SIGINT; run the same command again with ")
    out = named.removesuffix(" to go on")
    assert run_folder(load_config([*PLANTED, "budget=8MB", out])) == Path(out.removeprefix("out="))


def test_resume_without_a_folder_begins_no_new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="resume=true needs out=FOLDER"):
        run_folder(load_config([*PLANTED, "resume=true"]))
