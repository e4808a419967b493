"""Tasks on a run's folder refuse what is none, and leave it alone."""

from pathlib import Path

import pytest

from qra_bo.cli.app import main


@pytest.mark.parametrize(("task", "message"), [("report", "is no run's folder"), ("export", "can't be exported")])
def test_a_folder_without_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str], task: str, message: str) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    assert main([f"task={task}", f"out={tmp_path}"]) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
