"""What exceptions say of memory and devices; a worker whose device is lost ends, so that another one takes over."""

import os
from typing import Any

import pytest

from qra_bo.execution import worker
from qra_bo.oracle.protocol import TRAINING, quiet
from qra_bo.space import uniform
from qra_bo.trials import TrialSpec
from tests.study.oracles import PlantedOracle


class AcceleratorError(RuntimeError):
    """As torch names what leaves a CUDA context unusable."""


def test_a_worker_whose_device_is_lost_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(PlantedOracle):
        def evaluate(self, *_: Any) -> Any:
            raise AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", end)
    request = TrialSpec(uniform(4, "nf4", 4), 8, 8, 1, 2e-3).to_json()
    with pytest.raises(SystemExit) as ended:
        worker.serve(Broken(), {"op": "evaluate", "spec": request}, worker.Reporter(quiet, bool))
    assert ended.value.code == worker.DEVICE_LOST
    assert "its GPU context is lost: CUDA error: an illegal memory access was encountered" in caplog.text


def test_only_steps_say_how_far_an_evaluation_got() -> None:
    reporter = worker.Reporter(quiet, bool)
    for what, done in (("choose codes", 500), (TRAINING, 3), ("evaluate", 70)):
        reporter(what, done, 1000)
    assert reporter.done == 3
