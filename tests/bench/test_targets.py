"""What benchmarks conclude from their rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import evaluation_speed, normal_runs
from bench.report import Target, publish
from bench.sides import mixed_allocation, real_tokens
from tests.study.problem import run


def row(budget: str, scope: str, seed: int, better: bool = True, not_counted: str = "") -> dict[str, Any]:
    return {"folder": f"{scope}-{seed}", "budget": budget, "scope": scope, "seed": seed, "better": better,
            "not_counted": not_counted}


def test_a_budget_is_met_by_two_of_three_seeds() -> None:
    rows = [row("uniform:4,4", "peak", 0), row("uniform:4,4", "peak", 1, better=False), row("uniform:4,4", "peak", 2)]
    target = normal_runs.better_target(rows, "uniform:4,4", "peak")
    assert (target.value, target.met) == (2.0, True)
    rows[0]["better"] = False
    target = normal_runs.better_target(rows, "uniform:4,4", "peak")
    assert (target.value, target.met) == (1.0, False)


@pytest.mark.parametrize("reason", ["the run has not ended", "effort=quick"])
def test_nothing_is_measured_while_a_missing_run_could_decide(reason: str) -> None:
    rows = [row("uniform:4,4", "peak", 0), row("uniform:4,4", "peak", 1, better=False),
            row("uniform:4,4", "peak", 2, not_counted=reason), row("uniform:4,16", "stored", 2)]
    target = normal_runs.better_target(rows, "uniform:4,4", "peak")
    assert target.value is None
    assert not target.met
    assert reason in target.why
    assert normal_runs.better_target([], "uniform:4,4", "peak").value is None


@pytest.mark.parametrize(("better", "met"), [(True, True), (False, False)])
def test_two_alike_decide_whatever_the_third_says(better: bool, met: bool) -> None:
    rows = [row("uniform:4,4", "peak", seed, better=better) for seed in (0, 1)]
    target = normal_runs.better_target(rows, "uniform:4,4", "peak")
    assert (target.value, target.met) == (2.0 * better, met)
    assert "of 2 run" in target.what


def test_earlier_rows_are_kept_unless_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    earlier = [row("uniform:4,4", "peak", 0, better=False), row("uniform:4,4", "peak", 1),
               row("uniform:4,4", "peak", 2, not_counted="the run has not ended")]
    monkeypatch.setattr(normal_runs, "row_of",
                        lambda *_: {**row("uniform:4,4", "peak", 0), "wall_minutes": 1.0, "overhead_share": 0.0})
    for kept in earlier:
        kept.update(wall_minutes=2.0, overhead_share=0.0)
    (tmp_path / "normal_runs.json").write_text(json.dumps({"rows": earlier}))
    rows, _ = normal_runs.collect([Path("a")], "rtn", normal_runs.earlier_rows(tmp_path / "normal_runs.json"))
    assert [(r["seed"], r["better"], r["wall_minutes"]) for r in rows] == [(0, True, 1.0), (1, True, 2.0)]
    assert normal_runs.earlier_rows(tmp_path / "none.json") == []


def test_two_runs_cannot_stand_for_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normal_runs, "row_of", lambda *_: row("uniform:4,4", "peak", 0))
    with pytest.raises(SystemExit, match="seed=0; give one of them"):
        normal_runs.collect([Path("a"), Path("b")], "gptq")


def test_a_folder_without_a_run_says_why(tmp_path: Path) -> None:
    rows, targets = normal_runs.collect([tmp_path], "gptq")
    assert "is no run's folder" in rows[0]["not_counted"]
    assert all(t.value is None and not t.met and t.why for t in targets)


def test_a_finished_run_has_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    best = run(folder, fine_tunes=False).best
    found = normal_runs.row_of(folder, "rtn")
    assert "rounding" not in found["not_counted"]
    assert "bits=" not in normal_runs.row_of(folder, "rtn", (2, 4, 8))["not_counted"]
    assert "quantizer.rounding=rtn" in normal_runs.row_of(folder, "gptq")["not_counted"]
    assert "bits=[2, 4, 8]" in found["not_counted"]
    assert found["winner_kind"] == best["winner_kind"]
    assert found["wall_minutes"] == pytest.approx(best["cost"]["wall_seconds"] / 60)
    assert "oracle=" in found["not_counted"]


def result(rate: float, **more: float) -> dict[str, Any]:
    return {"tokens_per_second": rate, "step_seconds": 1.0, "steps": 2, "batch": 4, "length": 8, "dtype": "float32",
            "device": "cpu", "trainable": 5, "first_loss": 2.0, "switch_seconds": 1.0, "evaluation_seconds": 7.0,
            "evaluation_tokens": 70, "low_steps": 12,
            "packed_tokens_per_second": 1.5, "keeps_unpacked": True, **more}


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


def test_padding_is_not_counted() -> None:
    labels = np.array([[5, 6, 7, 8], [-100, 6, 7, -100], [-100, -100, -100, -100]])
    assert real_tokens(labels) == 4 + 3 + 0


def test_the_allocation_of_the_embedded_default() -> None:
    allocation = mixed_allocation(30)
    assert (allocation.formats.count("nf4"), allocation.formats.count("int8")) == (22, 8)
    assert (allocation.ranks.count(1), allocation.ranks.count(2)) == (20, 10)
