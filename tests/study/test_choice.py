"""The mixed allocation that is confirmed: by the surrogate where it passes its check, else by measured losses."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qra_bo.execution import InProcessExecutor
from qra_bo.searchers.base import SearchProblem
from qra_bo.space import Allocation
from qra_bo.study import RunOutcome
from qra_bo.study.choice import fails
from qra_bo.study.conclusion import LOOKS, decided
from qra_bo.study.setting import training_seeds
from qra_bo.trials import TrialSpec
from tests.study.oracles import PlantedOracle
from tests.study.problem import run
from tests.study.test_recommended import MIXED, Contrary

BAD, GOOD = -1.0, 0.8


def checked(agreement: float | None) -> type[Contrary]:
    """A searcher that recommends the larger loss, with the leave-one-out agreement of its surrogate."""
    class Checked(Contrary):
        def surrogate_check(self) -> Mapping[str, Any]:
            return {"observed": [], "predicted": [], "sd": [], "n": 6, "spearman": 0.1, "spearman_good": agreement,
                    "nll": 0.0, "coverage_50": 0.5, "coverage_90": 0.9}
    return Checked


class Shifted(PlantedOracle):
    """Adds ``shift`` to the losses of one allocation on training seeds other than the first that it sees; an infinite
    one is a divergence."""

    shifted, shift = MIXED[0], 0.0

    def evaluate(self, request: TrialSpec, progress: Any) -> Any:
        found = super().evaluate(request, progress)
        self.first = getattr(self, "first", request.train_seed)
        apart = self.shift if request.allocation == self.shifted and request.train_seed != self.first else 0.0
        return found if found.loss is None else replace(found, loss=found.loss + apart)


def outcome_of(folder: Path, agreement: float | None, shift: float = 0.0) -> RunOutcome:
    oracle = Shifted()
    losses = {a: oracle.evaluate(TrialSpec(a, 8, 8, 1, 1e-3), lambda *_: None).loss for a in MIXED}
    del oracle.first
    oracle.shifted, oracle.shift = min(MIXED, key=lambda a: losses[a] or 0.0), shift
    return run(folder, InProcessExecutor(oracle), searcher=checked(agreement))


@pytest.mark.parametrize(("agreement", "shift", "by", "takes_least", "repeats"), [
    (GOOD, 0.0, "surrogate", False, 0), (BAD, 0.0, "loss", True, 2), (None, 0.0, "loss", True, 2),
    (BAD, 50.0, "loss", False, 2), (BAD, math.inf, "loss", False, 2)])
def test_failed_surrogate_leaves_the_choice_to_losses(tmp_path: Path, agreement: float | None, shift: float, by: str,
                                                      takes_least: bool, repeats: int) -> None:
    study = outcome_of(tmp_path, agreement, shift).study
    choice, least = study.last["choice"], study.best_mixed
    assert least is not None
    assert choice["by"] == by
    assert len(choice["losses"]) == (2 if repeats and shift < math.inf else 0)
    assert (Allocation.from_json(choice["candidate"]) == least.allocation) == takes_least
    assert study.last["confirmation"]["candidate"] == choice["candidate"]
    again = [e for e in study.trials if e.stage == "repeat"]
    assert len(again) == repeats
    used = {study.header["train_seed"], *training_seeds(study.header["seed"], 3)[1]}
    assert not used & {e.spec.train_seed for e in again}  # of the search and of the confirmation


def test_choice_is_recorded_once_however_often_a_run_is_resumed(tmp_path: Path) -> None:
    first = outcome_of(tmp_path, BAD)
    again = outcome_of(tmp_path, BAD)
    assert again.best == first.best
    assert (tmp_path / "trials.jsonl").read_text().count('"choice"') == 1


def test_checks_without_agreement_fail() -> None:
    assert [fails({"spearman_good": a}) for a in (None, -0.2, 0.0, 0.1)] == [True, True, True, False]
    assert not fails(None)
    assert not fails({"n": 3})


def test_clear_signs_are_decided_at_the_looks_alone() -> None:
    clear = [-0.010, -0.011, -0.0105, -0.0102, -0.0108]
    assert [n for n in range(2, 6) if decided(clear[:n])] == list(LOOKS)
    assert not any(decided([0.01, -0.01, 0.012, -0.008, 0.0][:n]) for n in range(2, 6))


class NothingMixed(Contrary):
    """Proposes nothing."""

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        self._queue = []


def test_uniform_choice_is_not_confirmed_with_itself(tmp_path: Path) -> None:
    study = run(tmp_path, searcher=NothingMixed).study
    c = study.last["confirmation"]
    assert c["candidate"] == c["reference"]
    assert (c["train_seeds"], c["winner_kind"]) == ([], "uniform")
    assert not [e for e in study.trials if e.stage == "confirmation"]
