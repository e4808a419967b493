"""What benchmarks conclude from their rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import evaluation_speed
from bench.report import Target, publish


def result(rate: float, **more: float) -> dict[str, Any]:
    return {"tokens_per_second": rate, "step_seconds": 1.0, "steps": 2, "batch": 4, "length": 8, "dtype": "float32",
            "device": "cpu", "trainable": 5, "first_loss": 2.0, "switch_seconds": 1.0, "evaluation_seconds": 7.0,
            "evaluation_tokens": 70, "low_steps": 12,
            "packed_tokens_per_second": 1.5, **more}


def test_ratios_are_paired_by_round_and_the_share_is_that_of_a_low_fidelity_evaluation() -> None:
    found = {name: [result(2.0), result(4.0), result(9.0)] for name in evaluation_speed.SIDES}
    found["Trainer"] = [result(1.0), result(4.0), result(3.0)]
    rows = {r["what"]: r for r in evaluation_speed.rows_of(found)}
    assert [rows["training: Trainer"][k] for k in ("ratio", "ratio_low", "ratio_high")] == [2.0, 1.0, 3.0]
    assert rows["evaluation, forward only: qra_bo"]["median"] == 10.0
    assert rows["switch, share of a low-fidelity evaluation"]["median"] == pytest.approx(1 / (1 + 12 * 1 + 7))
    assert [t.met for t in evaluation_speed.targets_of(list(rows.values()))] == [True, True, True]


def test_published_results_have_the_contracts_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [Target("a", ">= 1", 2.0, True), Target("b", ">= 1", None, False, "no time")]
    path = publish("some_name", targets, [{"x": 1.5, "y": None}], ("x", "y"), threads=2, folder=tmp_path)
    content = json.loads(path.read_text())
    assert set(content) == {"name", "git", "machine", "targets", "rows"}
    assert content["targets"] == [{"what": "a", "target": ">= 1", "value": 2.0, "met": True},
                                  {"what": "b", "target": ">= 1", "value": None, "met": False, "why": "no time"}]
    assert "NOT MET: b: not measured (no time); target >= 1" in capsys.readouterr().out


def test_what_was_not_measured_is_never_met() -> None:
    with pytest.raises(ValueError, match="was not measured"):
        Target("a", ">= 1", None, True, "because")
    with pytest.raises(ValueError, match="was not measured"):
        Target("a", ">= 1", None, False)
