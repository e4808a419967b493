"""The mixed allocation that is confirmed: by the surrogate where it passes its check, else by measured losses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qra_bo.searchers.base import SearchProblem
from qra_bo.space import Allocation
from qra_bo.study.verdict import VerdictKind, verdict_of
from qra_bo.trials import Fidelity, Proposal
from tests.study.problem import Silent, Walk, run

BAD, GOOD = -1.0, 0.8
MIXED = (Allocation(("hqq8", "nf4", "hqq2", "nf4"), (2, 2, 4, 2)),
         Allocation(("hqq2", "nf4", "hqq2", "nf4"), (1, 2, 1, 2)))


class Contrary(Walk):
    """Two allocations; recommends the one with the larger loss."""

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        self._queue = [Proposal(a, Fidelity.HIGH, "global") for a in MIXED]

    def ask(self, n: int) -> list[Proposal]:
        return [self._queue.pop(0) for _ in self._queue[:n]]

    def recommend(self) -> list[Allocation]:
        losses = {e.allocation: e.loss or 0.0 for e in self.told if e.allocation in MIXED}
        return sorted(losses, key=lambda a: -losses[a])


def checked(agreement: float | None) -> type[Contrary]:
    """A searcher that recommends the larger loss, with the leave-one-out agreement of its surrogate."""
    class Checked(Contrary):
        def surrogate_check(self) -> Mapping[str, Any]:
            return {"observed": [], "predicted": [], "sd": [], "n": 6, "spearman": 0.1, "spearman_good": agreement,
                    "nll": 0.0, "coverage_50": 0.5, "coverage_90": 0.9}
    return Checked


@pytest.mark.parametrize(("searcher", "by"), [
    (checked(GOOD), "surrogate"), (checked(BAD), "loss"), (checked(None), "loss"), (Contrary, None)])
def test_recommendation_is_confirmed_unless_the_surrogate_fails(tmp_path: Path, searcher: Any,
                                                                by: str | None) -> None:
    outcome = run(tmp_path, searcher=searcher)
    study = outcome.study
    least, largest = sorted(MIXED, key=lambda a: study.point(a).loss or 0.0)
    assert study.best_mixed.allocation == least
    assert study.confirmation.candidate == (least if by == "loss" else largest)
    if by is None:
        assert outcome.found.allocation == largest
    else:
        assert (study.choice.by, study.choice.candidate) == (by, study.confirmation.candidate)


def test_uniform_choice_is_not_confirmed_with_itself(tmp_path: Path) -> None:
    study = run(tmp_path, searcher=Silent, effort__uniform_baselines=1).study
    assert [w for w in study.warnings if "proposed nothing at all" in w]
    c = study.confirmation
    assert c.candidate == c.reference
    assert (c.train_seeds, c.winner_kind) == ((), "uniform")
    assert verdict_of(study).kind is VerdictKind.NO_MIXED_LOSS
    assert not [e for e in study.trials if e.stage == "confirmation"]
