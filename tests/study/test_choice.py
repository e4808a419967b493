"""The mixed allocation that is confirmed: by the surrogate where it passes its check, else by measured losses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qra_bo.searchers.base import SearchProblem
from qra_bo.space import Allocation
from qra_bo.study.verdict import VerdictKind, verdict_of
from qra_bo.trials import Fidelity, Proposal
from tests.study.problem import Walk, run

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


def test_what_is_recommended_is_confirmed_rather_than_the_least_loss(tmp_path: Path) -> None:
    outcome = run(tmp_path, searcher=Contrary)
    study = outcome.study
    losses = {a: study.point(a).loss for a in MIXED}  # type: ignore[union-attr]
    least, largest = sorted(MIXED, key=lambda a: losses[a] or 0.0)
    assert study.best_mixed.allocation == least
    assert study.confirmation.candidate == largest
    assert outcome.found.allocation == largest


def checked(agreement: float | None) -> type[Contrary]:
    """A searcher that recommends the larger loss, with the leave-one-out agreement of its surrogate."""
    class Checked(Contrary):
        def surrogate_check(self) -> Mapping[str, Any]:
            return {"observed": [], "predicted": [], "sd": [], "n": 6, "spearman": 0.1, "spearman_good": agreement,
                    "nll": 0.0, "coverage_50": 0.5, "coverage_90": 0.9}
    return Checked


@pytest.mark.parametrize(("agreement", "by"), [(GOOD, "surrogate"), (BAD, "loss"), (None, "loss")])
def test_failed_surrogate_leaves_the_choice_to_losses(tmp_path: Path, agreement: float | None, by: str) -> None:
    study = run(tmp_path, searcher=checked(agreement)).study
    assert study.choice.by == by
    assert (study.choice.candidate == study.best_mixed.allocation) == (by == "loss")
    assert study.confirmation.candidate == study.choice.candidate


class NothingMixed(Contrary):
    """Proposes nothing."""

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        self._queue = []


def test_uniform_choice_is_not_confirmed_with_itself(tmp_path: Path) -> None:
    study = run(tmp_path, searcher=NothingMixed, effort__uniform_baselines=1).study
    c = study.confirmation
    assert c.candidate == c.reference
    assert (c.train_seeds, c.winner_kind) == ((), "uniform")
    assert verdict_of(study).kind is VerdictKind.NO_MIXED_LOSS
    assert not [e for e in study.trials if e.stage == "confirmation"]
