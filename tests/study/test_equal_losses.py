"""A search whose trials all give one loss (ln V, of a model that learns nothing) ends well."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from qra_bo.config import load_config
from qra_bo.execution.base import InProcessExecutor
from qra_bo.oracle.protocol import Progress
from qra_bo.pipeline.run import searcher_factory
from qra_bo.report.html import write_report
from qra_bo.trials import TrialResult, TrialSpec
from tests.study.oracles import PlantedOracle
from tests.study.problem import run

LOSS = math.log(49152)


class Untrained(PlantedOracle):
    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        curve = ((1, LOSS), (request.steps, LOSS))
        return dataclasses.replace(super().evaluate(request, progress), loss=LOSS, loss_se=0.0, curve=curve)


@pytest.mark.parametrize("method", ["structured", "trust_region", "autoqra"])
def test_equal_losses_end_a_search_well_and_resume(tmp_path: Path, method: str) -> None:
    make = searcher_factory(load_config(["model=tiny", f"method={method}"]))
    first, again = (run(tmp_path, InProcessExecutor(Untrained()), make, effort__max_full_trials=20,
                        ) for _ in range(2))
    assert first.best == again.best
    assert first.best["loss"] == first.best["search_loss"] == pytest.approx(LOSS, abs=1e-12)
    assert first.best["winner_kind"] == "uniform"
    if method == "structured":
        write_report(tmp_path)
        assert json.loads((tmp_path / "report.json").read_text())["surrogate_check"]["sd"]
