"""A device that holds less than the budget says: what runs out of memory narrows the search and teaches it nothing."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qra_bo.execution.base import InProcessExecutor
from qra_bo.oracle.protocol import Progress
from qra_bo.space import Allocation, limit_average_bits, uniform, with_allowance
from qra_bo.study.engine import RunOutcome
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from tests.study.oracles import PlantedOracle
from tests.study.problem import BUDGET, Recorded, comparable, make_costs, make_space, predict_bytes, run, warnings_of

HOLDS = 305
"""Bytes; the best uniform choice within the budget needs 308, the one below it 296."""


class SmallDevice(PlantedOracle):
    """Runs out of memory beyond ``holds`` bytes."""

    def __init__(self, holds: int) -> None:
        super().__init__()
        self.holds = holds

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        if predict_bytes(request.allocation) > self.holds:
            raise MemoryError("no room")
        return super().evaluate(request, progress)


class ReservingDevice(PlantedOracle):
    """Measures what its allocator reserves: ``excess`` bytes above the prediction from ``beyond`` bytes up."""

    def __init__(self, excess: int, beyond: int = 0) -> None:
        super().__init__()
        self.excess, self.beyond = excess, beyond

    def measured(self, a: Allocation) -> int:
        predicted = predict_bytes(a)
        return predicted + self.excess * (predicted >= self.beyond)

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        return replace(super().evaluate(request, progress), measured_bytes=self.measured(request.allocation))

    def measure_peak(self, allocation: Mapping[str, Any], train_seed: int, progress: Progress) -> dict[str, Any]:
        measured = self.measured(Allocation.from_json(allocation))
        return {"state": "ok", "message": "", "measured_bytes": measured, "peaks": {}}


def run_on(folder: Path, device: int | PlantedOracle, **changes: Any) -> RunOutcome:
    Recorded.made.clear()
    oracle = SmallDevice(device) if isinstance(device, int) else device
    outcome = run(folder, InProcessExecutor(oracle), Recorded, calibrate__lr_scales=[2.0], effort__references=False,
                  **changes)
    assert all(e.result.state is not TrialState.OOM for made in Recorded.made for e in made.told)
    return outcome


def test_what_ran_out_of_memory_raises_the_allowance_and_is_no_observation(tmp_path: Path) -> None:
    outcome = run_on(tmp_path / "run", HOLDS)
    evaluations = outcome.study.trials
    starved = [e for e in evaluations if e.result.state is TrialState.OOM]
    assert predict_bytes(uniform(4, "nf4", 4)) in [e.predicted_bytes for e in starved]
    limit = BUDGET
    for e in evaluations:
        # Anchors are drawn up before the first of them is tried; from then on nothing at or above a failure is.
        assert e.predicted_bytes <= limit or e.stage == "baseline"
        if e.result.state is TrialState.OOM:
            limit = min(limit, e.predicted_bytes - 1)
    assert limit >= HOLDS
    assert outcome.study.point(outcome.winner) is not None
    messages = [m for m in warnings_of(tmp_path / "run") if "the allowance grows by" in m]
    assert f"by {BUDGET - limit:,} bytes" in messages[-1]
    assert all(make.problem.budget_bytes == BUDGET for make in Recorded.made)
    assert len(Recorded.made) == 1 + sum(e.stage == "evolution" for e in starved)


def test_what_measures_above_the_budget_narrows_the_search_and_never_wins(tmp_path: Path) -> None:
    device = ReservingDevice(excess=5, beyond=BUDGET - 3)
    assert all(predict_bytes(a) < device.beyond for a in (uniform(4, "nf4", 4), uniform(4, "hqq2", 8)))
    outcome = run_on(tmp_path / "run", device)
    over = [e for e in outcome.study.trials if device.measured(e.allocation) > BUDGET]
    assert over
    assert not set(over) & set(outcome.study.points)
    assert device.measured(outcome.winner) <= BUDGET
    assert outcome.exit_status == 0
    first = over[0].id
    assert all(e.predicted_bytes <= BUDGET - 5 for e in outcome.study.trials if e.id > first)
    assert any("measured" in m and "the allowance grows by 5 bytes" in m for m in warnings_of(tmp_path / "run"))


def test_a_baseline_measured_above_its_prediction_calibrates_the_search(tmp_path: Path) -> None:
    outcome = run_on(tmp_path / "run", ReservingDevice(excess=9))
    searched = [e for e in outcome.study.trials if e.stage == "evolution"]
    assert searched
    assert all(e.predicted_bytes <= BUDGET - 9 for e in searched)
    assert len(Recorded.made) == 1
    assert outcome.exit_status == 0


@pytest.mark.parametrize("device", [SmallDevice(HOLDS), ReservingDevice(5, BUDGET - 3)])
def test_a_run_with_less_memory_goes_on_to_the_same_end(tmp_path: Path, device: PlantedOracle) -> None:
    whole = run_on(tmp_path / "whole", device)
    lines = (tmp_path / "whole" / "trials.jsonl").read_text().splitlines(keepends=True)
    for kept in (len(lines) // 3, len(lines) // 2, len(lines) - 8):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "trials.jsonl").write_text("".join(lines[:kept]))
        assert comparable(run_on(folder, device).best) == comparable(whole.best)


def test_baselines_after_a_search_keep_to_the_memory_that_it_found_when_they_are_repeated(tmp_path: Path) -> None:
    device, short = ReservingDevice(5, BUDGET - 3), {"effort__max_full_trials": 12, "effort__uniform_baselines": 1}
    run_on(tmp_path, device, **short)
    longer = run_on(tmp_path, device)
    assert "allowance grows by 5 bytes" in " ".join(warnings_of(tmp_path))
    raw = (tmp_path / "trials.jsonl").read_bytes()
    assert run_on(tmp_path, device).best == longer.best
    assert (tmp_path / "trials.jsonl").read_bytes() == raw


def test_a_search_without_any_room_left_ends_with_what_it_has(tmp_path: Path) -> None:
    least = min(predict_bytes(uniform(4, f, 1)) for f in ("hqq2", "nf4", "hqq8"))
    folder = tmp_path / "run"

    class Shrinking(SmallDevice):
        """Another program takes all memory once the uniform baselines are done."""

        def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
            if request.steps < request.schedule_steps:  # the walk's first proposal is of low fidelity
                self.holds = 0
            return super().evaluate(request, progress)

    class Least(Recorded):
        """Proposes the smallest allocation first."""

        def ask(self, n: int) -> list:  # type: ignore[type-arg]
            found = super().ask(n)
            return [type(p)(uniform(4, "hqq2", 1), p.fidelity, p.stage) for p in found]

    outcome = run(folder, InProcessExecutor(Shrinking(BUDGET)), Least, fine_tunes=False, calibrate__lr_scales=[2.0],
                  effort__references=False, confirm__seeds=0)
    assert any("holds no allocation" in message for message in warnings_of(folder))
    assert predict_bytes(outcome.winner) > least


def test_an_allowance_is_of_memory_and_not_of_average_bits() -> None:
    space = make_space()
    costs = limit_average_bits(make_costs(space), space, BUDGET, 4.0)
    raised = with_allowance(costs, 100)
    row = space.encode(uniform(4, "nf4", 1))[None, :]
    assert costs.feasible(row, BUDGET).all()
    assert raised.totals(row) == predict_bytes(uniform(4, "nf4", 1)) + 100
    bits_alone = np.array([p.name for p in raised.phases]) == "codes"
    assert [p.fixed for p, codes in zip(raised.phases, bits_alone, strict=True) if codes] == \
        [p.fixed for p in costs.phases if p.name == "codes"]
