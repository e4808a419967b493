"""Steps done of a simulated training are noted in files that are whole or not there."""

from dataclasses import replace
from pathlib import Path

import pytest

from qra_bo.oracle.simulated import StepsDone
from qra_bo.space import uniform
from qra_bo.trials import TrialSpec


def test_note_that_can_not_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     caplog: pytest.LogCaptureFixture) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert StepsDone(tmp_path).start(TrialSpec(uniform(6, "nf4", 4), 6, 24, 0, 2e-3)) == 0
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_training_with_other_codes_continues_none() -> None:
    done, low = StepsDone(None), TrialSpec(uniform(6, "nf4", 4), 6, 24, 0, 2e-3)
    assert done.start(low) == 0
    assert done.start(replace(low, steps=24, codes="rtn")) == 0
    assert done.start(replace(low, steps=24)) == 6
