"""Collecting a table: what the plan asks for, and going on where it stopped."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.collect import __main__ as program
from bench.collect.__main__ import ROWS, main, work
from bench.collect.plan import CALIBRATION, REPEAT, Sizes, lr_scale
from bench.collect.task import begin, differences, task_config, touches, untouched_seeds
from bench.collect.worker import make_oracle as make_worker
from bench.emulator.table import load_provenance, load_rows
from qra_bo.config import load_config, make_space, make_spec
from qra_bo.execution.base import InProcessExecutor, run_profile
from qra_bo.finetune.data.records import batches
from qra_bo.space import uniform
from qra_bo.trials import TrialSpec, TrialState
from qra_bo.utils.errors import DataError
from tests.bench.tables import make_collection, make_plan, make_setting
from tests.study.oracles import PlantedOracle


def test_a_whole_table_has_every_origin_and_only_new_rows(tmp_path: Path) -> None:
    setting = make_setting()
    collection, plan = make_collection(tmp_path, setting), make_plan(setting)
    work(collection, plan, None, None)
    rows = collection.rows
    assert plan.next(rows) is None
    counts = Counter(row.origin.split()[0] for row in rows)
    assert counts[CALIBRATION] == 3 * len({a for a, _ in plan.calibration()})
    assert set(counts) >= {"uniform", "designed", "near", "wide", "neighbour", REPEAT}
    assert counts["neighbour"] == 8
    assert counts[REPEAT] == 6
    searched = [row for row in rows if row.origin != CALIBRATION]
    assert len({(row.allocation, row.train_seed) for row in searched}) == len(searched)
    scale = lr_scale(setting.facts, rows)
    assert all(row.lr_scale == scale for row in searched)
    assert len(rows) <= plan.total
    for budget in setting.facts.budgets:
        assert all(row.bytes[budget.scope] <= budget.bytes for row in rows
                   if row.origin.endswith(budget.text) and "share" in row.origin)
    assert all(len([x for x in row.early if x is not None]) == 2 for row in rows)
    by_seed = Counter(row.train_seed for row in rows if row.origin == REPEAT)
    assert by_seed == {12: 3, 13: 3}
    repeated = {row.allocation for row in rows if row.origin == REPEAT}
    assert repeated <= {row.allocation for row in rows if row.train_seed == 11}


def test_a_table_cut_short_has_all_kinds_of_rows_in_proportion(tmp_path: Path) -> None:
    setting = make_setting()
    collection, plan = make_collection(tmp_path, setting), make_plan(setting)
    fixed = len(plan._fixed)
    work(collection, plan, len(plan.calibration()) + (fixed + 8 + 6) // 2, None)
    counts = Counter(row.origin.split()[0] for row in collection.rows)
    assert 3 <= counts["neighbour"] <= 5
    assert counts[REPEAT] in (2, 4)


def test_a_killed_collection_goes_on_to_the_same_table(tmp_path: Path) -> None:
    setting = make_setting()
    whole = make_collection(tmp_path / "whole", setting)
    work(whole, make_plan(setting), None, None)
    for most in (5, 1, 13):
        work(make_collection(tmp_path / "parts", setting), make_plan(setting), most, None)
    path = tmp_path / "parts" / ROWS
    path.write_bytes(path.read_bytes() + b"0123,near share:0.3,nf4 nf4")  # cut off by a kill
    work(make_collection(tmp_path / "parts", setting), make_plan(setting), None, None)
    parts = load_rows(path, setting.facts)
    assert [replace(r, seconds=0.0) for r in parts] == [replace(r, seconds=0.0) for r in whole.rows]


def test_another_seed_draws_others_and_the_same_seed_the_same() -> None:
    setting = make_setting()
    one, two, again = (list(make_plan(setting, seed)._fixed) for seed in (0, 1, 0))
    assert one == again
    assert one != two


def test_each_session_leaves_one_line_of_provenance(tmp_path: Path) -> None:
    setting = make_setting()
    for session in ("a", "b"):
        work(make_collection(tmp_path, setting, session), make_plan(setting), 2, None)
    known = load_provenance(tmp_path / "provenance.jsonl")
    rows = load_rows(tmp_path / ROWS, setting.facts)
    assert {row.batch for row in rows} == set(known)
    assert [facts["begun"] for facts in known.values()] == ["a", "b"]


def test_the_rate_is_the_vertex_over_all_choices(tmp_path: Path) -> None:
    setting = make_setting()
    collection, plan = make_collection(tmp_path, setting), make_plan(setting)
    assert plan.calibrated(()) is None
    work(collection, plan, len(plan.calibration()), None)
    found = plan.calibrated(collection.rows)
    # The planted loss is a parabola in log2 of the factor with its vertex at 1: its noise moves that little.
    assert found == pytest.approx(1.0, abs=0.15)
    assert plan.calibrated(collection.rows[:-1]) is None


def test_descriptions_differ_in_what_both_say() -> None:
    before = {"trainer": {"lr": 1e-3, "optimizer": {"eps": 1e-8}}, "dtype": "bfloat16"}
    assert not differences(before, {**before, "trainer": {"lr": 1e-3, "optimizer": {"eps": 1e-8, "kind": "adamw"}}})
    assert "trainer" in differences(before, {**before, "trainer": {"optimizer": {"eps": 1e-6}}})[0]
    assert "dtype" in differences(before, {"trainer": before["trainer"]})[0]


def test_calibration_text_is_never_trained_on() -> None:
    config = task_config("plays", None)
    seeds = untouched_seeds(300, 8, config)
    assert len(set(seeds)) == 3
    for seed in seeds:
        assert batches(300, config.train.batch, config.fidelity.high, seed).min() >= 8
    assert touches(96, 8, 4, 24, 0)
    with pytest.raises(DataError, match="too small"):
        untouched_seeds(96, 8, config)


def test_sensitivities_come_from_text_that_no_seed_sees(tmp_path: Path) -> None:
    described = {"train_blocks": 300, "calibration_blocks": 9}
    with pytest.raises(DataError, match=r"first 8 training sequences.*data\.calibration=9"):
        begin(tmp_path, "plays", task_config("plays", None), described, InProcessExecutor(PlantedOracle()))
    assert list(tmp_path.iterdir()) == []


def test_the_worker_records_the_curve_and_names_no_file(tmp_path: Path) -> None:
    config = load_config(["+model=tiny", "data=tiny", "fidelity.high=4", "fidelity.low=null", "dtype=float32"])
    oracle = make_worker(config.to_dict(), str(tmp_path), [1, 3])
    described = oracle.describe()
    assert "data" not in described
    assert described["train_blocks"] > described["calibration_blocks"] > 0
    units = len(make_space(config, make_spec(config)).units)
    measured = oracle.evaluate(TrialSpec(uniform(units, "nf4", 2), 4, 4, 0, 2e-3), lambda *_: None)
    assert [step for step, _ in measured.curve] == [1, 3, 4]
    profile = run_profile(oracle, lambda *_: None)
    assert profile.training_tokens > 0
    assert profile.forward_tokens > profile.training_tokens
    oracle.close()


def test_tasks_say_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="built in"):
        task_config("plays", "x.jsonl")
    assert main(["--task", "gsm8k"]) == 2
    assert "needs --data FILE" in capsys.readouterr().err


def test_the_command_adds_as_many_rows_as_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, table = make_setting(), tmp_path / "table"
    monkeypatch.setattr(program, "LocalExecutor", lambda specs, limits: make_collection(table, setting)._executor)
    monkeypatch.setattr(program, "load_setting", lambda folder, config: setting)
    for heavy in ("begin", "prepare_worker_environment"):
        monkeypatch.setattr(program, heavy, lambda *_: None)
    command = ["--task", "plays", "--table", str(table), "--evaluations"]
    deciding = len(make_plan(setting).calibration())
    for asked, rows in ((2, 2), (0, 2), (deciding, deciding + 2)):
        assert main([*command, str(asked)]) == 0
        assert len(load_rows(table / ROWS, setting.facts)) == rows


def test_failures_are_rows_without_a_loss(tmp_path: Path) -> None:
    setting = make_setting()
    collection, plan = make_collection(tmp_path, setting), make_plan(setting, sizes=Sizes(1, 1, 1, 0, 0))

    class Failing:
        def evaluate(self, request: Any, progress: Any) -> Any:
            measured = make_collection(tmp_path, setting)._executor.evaluate(request, progress)
            return replace(measured, state=TrialState.DIVERGED, loss=None, loss_se=None, curve=()) \
                if "int8" in request.allocation.formats else measured

    collection._executor = Failing()  # type: ignore[assignment]
    work(collection, plan, None, None)
    rows = collection.rows
    assert plan.next(rows) is None
    lost = [row for row in rows if row.loss is None]
    assert lost
    assert all(row.state.value == "diverged" and set(row.early) == {None} for row in lost)
    assert np.isfinite([row.loss for row in rows if row.loss is not None]).all()
