"""The mixed allocation that is confirmed: by the surrogate where it passes its check, else by measured losses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qra_bo.searchers.base import SearchProblem
from qra_bo.study import VerdictKind, verdict_of
from tests.study.problem import run
from tests.study.test_recommended import Contrary

BAD, GOOD = -1.0, 0.8


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
