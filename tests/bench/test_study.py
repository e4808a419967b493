"""Studies: plans that are read, rates that are bracketed, trials in order, and their results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import bench.study as study_package
from bench.study.__main__ import main
from bench.study.coverage import recorded, simulate
from bench.study.plan import Arm, Study, load_study
from bench.study.run import finder, stores_in, work
from bench.study.schedule import SEARCH_SEED, Settled, missing, settle
from bench.study.summary import difference, rows_of, summarise
from qra_bo.config import make_space, make_spec
from qra_bo.execution.base import Executor, InProcessExecutor
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.study.intervals import paired_interval, two_way_interval
from qra_bo.study.setting import training_seeds
from qra_bo.trials import TrialResult, TrialState
from qra_bo.utils.errors import ConfigError

PLANS = Path(study_package.__file__).parent / "plans"
UNSEEN = training_seeds(0, 5)[1]
PLAN: dict[str, Any] = {
    "name": "a_study", "overrides": ["+model=tiny", "bits=[3,4,8]", "device=cpu"], "texts": {"plain": ["data=tiny"]},
    "comparisons": [{"text": "plain", "label": "small", "steps": [4, 8], "seeds": 3,
                     "learning_rates": [0.001, 0.002], "opponents": ["four bits"],
                     "choices": {"four bits": "uniform:4,4", "hqq3": {"allocation": "uniform:hqq3,8", "codes": "rtn"},
                                 "fixed": {"allocation": "uniform:8,2", "learning_rate": {4: 0.004, 8: 0.003},
                                           "facts": {"spent": 9.5}}}}]}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
    return path


def simulated(study: Study, arm: Arm, folder: Path) -> Executor:
    """A planted landscape instead of fine-tuning."""
    config = study.config(arm)
    return InProcessExecutor(SyntheticOracle(make_space(config, make_spec(config)), 0, high_steps=8))


def test_allocations_of_every_form_are_resolved(tmp_path: Path) -> None:
    formats = ["nf4", "int8", "nf4", "hqq3"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.json").write_text(json.dumps({"formats": [{"name": f} for f in formats],
                                                            "ranks": [1, 2, 3, 4]}))
    choices = {"lists": {"allocation": {"formats": formats, "ranks": [1, 2, 3, 4]}}, "run": "run",
               "file": "run/best.json", "bits": "uniform:4,4", "format": "uniform:int3-g64,4",
               "other": {"allocation": "uniform:4,4", "overrides": ["embeddings=8"]}}
    comparison = {**PLAN["comparisons"][0], "steps": [4], "opponents": [], "choices": choices}
    [arms] = load_study(written(tmp_path, comparisons=[comparison])).comparisons
    found = {arm.name: arm for arm in arms}
    assert found["lists"].allocation == found["run"].allocation == found["file"].allocation
    assert set(found["bits"].allocation.formats) == {"nf4"}
    assert set(found["format"].allocation.formats) == {"int3-g64"}
    assert found["other"].setting == f"{found['bits'].setting} embeddings=8"


@pytest.mark.parametrize(("changes", "said"), [
    ({"nonsense": 1}, "nonsense"), ({"texts": {}}, "plain is not"),
    ({"comparisons": [{**PLAN["comparisons"][0], "opponents": ["nobody"]}]}, "nobody is not"),
    ({"comparisons": [{**PLAN["comparisons"][0], "learning_rates": [0.002, 0.001]}]}, "ascending"),
    ({"comparisons": [{**PLAN["comparisons"][0], "learning_rates": []}]}, "need learning_rates")])
def test_plan_that_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(written(tmp_path, **changes))


@pytest.mark.parametrize("allocation", ["uniform:4", "uniform:4,x", {"formats": ["nf4"], "ranks": [1]}])
def test_allocation_that_is_none_of_the_model_is_refused(tmp_path: Path, allocation: Any) -> None:
    comparison = {**PLAN["comparisons"][0], "opponents": [], "choices": {"a": {"allocation": allocation}}}
    with pytest.raises(ConfigError, match="allocation"):
        assert load_study(written(tmp_path, comparisons=[comparison])).comparisons


@pytest.fixture(scope="module", name="finished")
def make_finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    folder = tmp_path_factory.mktemp("study")
    study = load_study(written(folder))
    work(study, folder / "trials", open_executor=simulated)
    return study, folder / "trials"


def test_calibrations_come_first_then_one_seed_after_another(finished: tuple[Study, Path]) -> None:
    study, folder = finished
    [store] = stores_in(folder)
    rows = [row for row in store.rows() if row["steps"] == 4]
    calibrated = [row for row in rows if row["split"] == "validation"]
    assert rows[:len(calibrated)] == calibrated
    assert {row["train_seed"] for row in calibrated} == {SEARCH_SEED}
    assert {row["name"] for row in calibrated} == {"four bits", "hqq3"}
    assert [(row["train_seed"], row["name"]) for row in rows[len(calibrated):]] == [
        (seed, name) for seed in UNSEEN[:3] for name in ("four bits", "hqq3", "fixed")]
    assert {row["codes"] for row in rows if row["name"] == "hqq3"} == {"rtn"}
    assert list(missing(study.comparisons, finder([store]))) == []
    assert len(store.sessions()) == 1


def test_rows_have_paired_differences_and_brackets(finished: tuple[Study, Path], tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    study, folder = finished
    rows = rows_of(study, stores_in(folder))
    assert [(row["steps"], row["name"]) for row in rows] == [
        (steps, name) for steps in (4, 8) for name in ("four bits", "hqq3", "fixed")]
    four, other, fixed = rows[:3]
    assert four["minus"] == {"four bits": None}
    d = other["minus"]["four bits"]
    assert d["mean"] == pytest.approx(sum(other["losses"][s] - four["losses"][s] for s in four["losses"]) / 3)
    assert (d["seeds"], d["low"] <= d["mean"] <= d["high"]) == (3, True)
    assert (fixed["learning_rate"], fixed["rates_tried"], fixed["spent"]) == (0.004, [], 9.5)
    assert len(four["rates_tried"]) >= 2
    summarise(study, stores_in(folder), tmp_path)
    content = json.loads((tmp_path / "a_study.json").read_text())
    assert content["rows"] == json.loads(json.dumps(rows))
    assert content["git"] == stores_in(folder)[0].sessions()[-1]["git"]
    assert "| plain | small | 4     | hqq3" in capsys.readouterr().out


@pytest.mark.parametrize("known", [(True, True), (True, False)], ids=["both have sums", "one has none"])
def test_differences_hold_for_other_text_where_both_sides_know_their_sequences(finished: tuple[Study, Path],
                                                                               known: tuple[bool, bool]) -> None:
    sums = [(((2.5, 2), (5.0, 3)), ((1.0, 2), (4.5, 3))), (((2.25, 2), (5.5, 3)), ((1.0, 2), (4.0, 3)))]

    def made(sequences: Any, has: bool) -> TrialResult:
        return TrialResult(TrialState.OK, sum(loss for loss, _ in sequences) / 5, None, (), 0, 0, 0, None, 0.0,
                           sequence_losses=sequences if has else ())

    sides = [Settled(finished[0].comparisons[0][0], tested={3: made(of[0], has), 4: made(of[1], has)})
             for has, of in zip(known, sums, strict=True)]
    sides[0].tested[5] = sides[0].tested[4]  # a seed that the other side lacks
    found = difference(*sides)
    expected = two_way_interval(*sums) if all(known) else paired_interval([-0.05, 0.1])
    assert found == {"mean": pytest.approx(expected.mean), "low": pytest.approx(expected.low),
                     "high": pytest.approx(expected.high), "seeds": 2, "over_text": all(known)}


def test_stopped_study_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = load_study(written(tmp_path))
    for _ in range(2):
        work(study, tmp_path / "trials", most=2, open_executor=simulated)
    [store] = stores_in(tmp_path / "trials")
    names = [row["key"] for row in store.rows()]
    assert len(names) == len(set(names)) == 4
    arm = study.comparisons[0][0]
    assert len(settle(arm, finder([store])).tried) >= 1
    assert "missing" in capsys.readouterr().out


def test_settings_share_no_checkpoints(tmp_path: Path) -> None:
    comparison = {"text": "plain", "steps": [4], "seeds": 1, "opponents": [], "choices": {
        name: {"allocation": "uniform:4,4", "learning_rate": 0.002, "overrides": overrides}
        for name, overrides in (("as it is", []), ("shorter", ["train.length=64"]))}}
    folders = list[Path]()

    def opened(study: Study, arm: Arm, folder: Path) -> Executor:
        folders.append(folder)
        return simulated(study, arm, folder)

    work(load_study(written(tmp_path, comparisons=[comparison])), tmp_path / "trials", open_executor=opened)
    assert len(set(folders)) == len(folders) == 2
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.slow
def test_command_trains_the_tiny_model_and_makes_its_results(tmp_path: Path) -> None:
    comparison = {"text": "plain", "steps": [2], "seeds": 2, "opponents": ["a"], "choices": {
        "a": {"allocation": "uniform:4,4", "learning_rate": 0.002},
        "b": {"allocation": "uniform:8,2", "learning_rate": 0.002}}}
    overrides = [*PLAN["overrides"], "train.batch=2", "train.length=32", "eval.sequences=4", "quantizer.rounding=rtn"]
    path = str(written(tmp_path, overrides=overrides, texts={"plain": ["data=tiny", "data.max_records=64"]},
                       comparisons=[comparison]))
    out = str(tmp_path / "trials")
    assert main([path, "--out", out]) == 0
    assert main([path, "--out", out, "--summary", "--results", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "a_study.json").read_text())["rows"]
    assert [row["seeds"] for row in rows] == [2, 2]
    assert rows[1]["minus"]["a"]["seeds"] == 2
    for row in stores_in(tmp_path / "trials")[0].rows():
        total, count, _ = map(sum, zip(*row["sequence_losses"], strict=True))
        assert row["loss"] == pytest.approx(total / count)
        assert len(row["sequence_losses"]) == 8  # twice eval.sequences


def test_command_refuses_a_wrong_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written(tmp_path, nonsense=1))]) == 2
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_plan_of_the_project_is_valid(path: Path) -> None:
    study = load_study(path)
    assert all(arms for arms in study.comparisons)
    assert study.plan.name != ""


def test_simulated_coverage_counts_what_seeds_alone_miss() -> None:
    draw, tokens = np.random.default_rng(1), 100
    apart = draw.normal(0, 0.005, (20, 1)) + draw.normal(0, 0.1, 90) + draw.normal(0, 0.05, (20, 90))
    candidate = [[((2 + d) * tokens, tokens) for d in row] for row in apart]
    found = simulate(candidate, [[(2.0 * tokens, tokens)] * 90] * 20, 60, True, repeats=200)
    assert found["mean"] == pytest.approx(apart.mean())
    assert found["over_seeds_alone"] < 0.85 < 0.9 < found["coverage"]
    assert found["half_width_over_seeds_alone"] < found["half_width"]


@pytest.mark.slow
def test_intervals_cover_recorded_trainings() -> None:
    found = {(row["choice"], row["drawn"]): row["coverage"] for row in recorded(repeats=2000)}  # of seeds that learn
    assert len(found) == 2
    assert [key for key, coverage in found.items() if not 0.93 <= coverage <= 0.97] == []
