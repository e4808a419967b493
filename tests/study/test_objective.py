"""The length that a run minimises the loss of: what searchers are told, who wins, and how long the comparison is."""

from pathlib import Path
from typing import Any

import pytest

from qra_bo.execution.base import InProcessExecutor
from qra_bo.study.cost import affordable_steps
from qra_bo.study.engine import RunOutcome
from qra_bo.trials import Fidelity
from tests.study.oracles import PlantedOracle
from tests.study.problem import HIGH, TOKENS, Recorded, Walk, run


class Counting(PlantedOracle):
    """Says how many training sequences there are: a step takes one."""

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "train_sequences": 40}


def long_run(folder: Path, searcher: Any = Walk, **changes: Any) -> RunOutcome:
    return run(folder, InProcessExecutor(Counting()), searcher, **changes)


def test_final_length_is_minimised_and_losses_are_carried(tmp_path: Path) -> None:
    Recorded.made.clear()
    study = long_run(tmp_path, Recorded).study
    objective = study.objective
    assert (study.objective_steps, objective.steps, objective.before) == (40, 40, HIGH)
    assert {made.problem.objective_steps for made in Recorded.made} == {40}
    losses = {e.id: e.loss for made in Recorded.made for e in made.told if e.fidelity is Fidelity.HIGH and e.ok}
    assert {e.id for e in study.points if e.stage == "evolution"} <= losses.keys()
    for e in study.points:
        if e.id in losses:
            assert losses[e.id] == pytest.approx(e.loss + study.objective.change.of(e.allocation))
    assert any(abs(study.value(e) - e.loss) > 1e-3 for e in study.points)
    values = [study.value(e) for e in study.ranked]
    assert values == sorted(values)
    assert study.incumbent is study.ranked[0]


def test_confirmation_is_as_long_as_the_effort_affords(tmp_path: Path) -> None:
    study = long_run(tmp_path).study
    # 24 full trials of 90 tokens' worth, shared by three allocations on three seeds of 10 tokens a step
    assert study.confirmation_steps == 24
    lengths = {e.spec.steps for e in study.trials if e.stage == "confirmation"}
    c = study.confirmation
    assert lengths <= {24}
    assert c.steps == 24
    assert study.objective.steps > c.steps
    raw = (tmp_path / "trials.jsonl").read_bytes()
    assert long_run(tmp_path).study.objective_steps == 40
    assert (tmp_path / "trials.jsonl").read_bytes() == raw


def test_a_final_training_no_longer_than_a_trial_changes_nothing(tmp_path: Path) -> None:
    short = long_run(tmp_path / "short", final__steps=HIGH)
    trial = long_run(tmp_path / "trial", final__steps=HIGH, search__length="trial")
    assert short.study.objective is trial.study.objective is None
    assert trial.best["objective"] == {"steps": HIGH, "trial_steps": HIGH, "confirmed_steps": HIGH,
                                       "predicted_beyond": 0.0, "predicted_beyond_sd": 0.0}
    assert [e.spec.key for e in short.study.trials] == [e.spec.key for e in trial.study.trials]


@pytest.mark.parametrize(("cost", "steps"), [(0.0, 8), (1e3, 8), (1.5e3, 16), (1e9, 11_111_104)])
def test_affordable_steps_are_multiples_of_a_trial(cost: float, steps: int) -> None:
    assert affordable_steps(cost, 3, TOKENS, 8) == steps
