"""The comparison on unseen seeds: what it decides is delivered, and a weaker one never replaces it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qra_bo.execution import InProcessExecutor
from qra_bo.oracle.protocol import Progress
from qra_bo.space import Allocation
from qra_bo.study import RunOutcome
from qra_bo.study.health import FAIL, card
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from tests.study.oracles import PlantedOracle
from tests.study.problem import make_setting, run
from tests.study.test_choice import BAD, checked
from tests.study.test_recommended import Contrary

SEEDS = make_setting(confirm__seeds=5).confirm_seeds


class Favoured(PlantedOracle):
    """Mixed formats gain 3 nats, but for those of ``lost`` training seeds, where they lose 20, and of
    ``diverging`` ones."""

    def __init__(self, lost: Iterable[int] = (), diverging: Iterable[int] = ()) -> None:
        super().__init__()
        self.lost, self.diverging = set(lost), set(diverging)

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        found = super().evaluate(request, progress)
        if len(set(request.allocation.formats)) == 1 or found.loss is None:
            return found
        if request.train_seed in self.diverging:
            return replace(found, state=TrialState.DIVERGED, loss=None, message="the loss is nan")
        return replace(found, loss=found.loss + (20.0 if request.train_seed in self.lost else -3.0))


def favoured(folder: Path, lost: Iterable[int] = (), diverging: Iterable[int] = (), searcher: Any = Contrary,
             **changes: Any) -> RunOutcome:
    return run(folder, InProcessExecutor(Favoured(lost, diverging)), searcher, **{"confirm__seeds": 5, **changes})


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("failures", [0, 1, 2, 4, 5])
def test_what_diverges_on_unseen_seeds_is_not_delivered(tmp_path: Path, failures: int, sequential: bool) -> None:
    outcome = favoured(tmp_path, diverging=SEEDS[:failures], effort__sequential=sequential)
    c = outcome.study.last["confirmation"]
    mixed = len(set(outcome.winner.formats)) > 1
    assert mixed == (c["winner_kind"] == "mixed") == (outcome.best["winner_kind"] == "mixed") == (failures == 0)
    assert outcome.winner == Allocation.from_json(c["candidate" if mixed else "reference"])
    assert c["candidate_failed"] == (failures > 0)
    assert len(c["train_seeds"]) != 1  # one pair has no interval
    if not c["train_seeds"]:
        found = card(outcome.study, "beats_uniform")
        assert found.status == FAIL
        assert "failed on unseen training seeds" in found.finding
        assert outcome.best["metric"] == "validation_loss"


def test_an_extension_checks_the_surrogate_of_all_its_baselines(tmp_path: Path) -> None:
    searcher = checked(BAD)
    first = favoured(tmp_path, searcher=searcher, effort__uniform_baselines=1, effort__references=False)
    assert first.study.last["choice"]["by"] == "loss"
    longer = favoured(tmp_path, searcher=searcher)
    assert len(longer.study.points) > len(first.study.points)
    assert longer.study.last["surrogate_check"]["spearman_good"] == BAD
    assert longer.study.last["choice"]["by"] == "loss"
    raw = (tmp_path / "trials.jsonl").read_bytes()
    assert favoured(tmp_path, searcher=searcher).best == longer.best
    assert (tmp_path / "trials.jsonl").read_bytes() == raw
