"""The comparison on unseen seeds: what it decides is delivered, and a weaker one never replaces it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qra_bo.execution.base import InProcessExecutor
from qra_bo.oracle.protocol import Progress
from qra_bo.space import uniform
from qra_bo.study.engine import RunOutcome
from qra_bo.study.state import Study
from qra_bo.study.verdict import VerdictKind, verdict_of
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from tests.study.oracles import PlantedOracle
from tests.study.problem import comparable, lines_of, make_setting, run
from tests.study.test_choice import BAD, Contrary, checked
from tests.study.test_objective import long_run

SEEDS = make_setting(confirm__seeds=5).confirm_seeds


class Favoured(PlantedOracle):
    """Mixed formats and ranks gain 3 nats, but for those of ``lost`` training seeds, where they lose 20, and of
    ``diverging`` ones."""

    def __init__(self, lost: Iterable[int] = (), diverging: Iterable[int] = ()) -> None:
        super().__init__()
        self.lost, self.diverging = set(lost), set(diverging)

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        found = super().evaluate(request, progress)
        if min(len(set(request.allocation.formats)), len(set(request.allocation.ranks))) == 1 or found.loss is None:
            return found
        if request.train_seed in self.diverging:
            return replace(found, state=TrialState.DIVERGED, loss=None, message="the loss is nan")
        return replace(found, loss=found.loss + (20.0 if request.train_seed in self.lost else -3.0))


def favoured(folder: Path, lost: Iterable[int] = (), diverging: Iterable[int] = (), searcher: Any = Contrary,
             **changes: Any) -> RunOutcome:
    return run(folder, InProcessExecutor(Favoured(lost, diverging)), searcher, **{"confirm__seeds": 5, **changes})


def confirmed(study: Study) -> list[int]:
    return [int(seed) for seed in study.confirmation.train_seeds]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("failures", [0, 1, 2, 4, 5])
def test_what_diverges_on_unseen_seeds_is_not_delivered(tmp_path: Path, failures: int, sequential: bool) -> None:
    outcome = favoured(tmp_path, diverging=SEEDS[:failures], effort__sequential=sequential)
    c = outcome.study.confirmation
    mixed = len(set(outcome.winner.formats)) > 1
    assert mixed == (c.winner_kind == "mixed") == (outcome.best["winner_kind"] == "mixed") == (failures == 0)
    assert outcome.winner == (c.candidate if mixed else c.reference)
    assert c.candidate_failed == (failures > 0)
    assert len(c.train_seeds) != 1  # one pair has no interval
    if not c.train_seeds:
        assert verdict_of(outcome.study).kind is VerdictKind.SIMPLE_WINS
        assert outcome.best["metric"] == "validation_loss"


def test_an_extension_checks_the_surrogate_of_all_its_baselines(tmp_path: Path) -> None:
    searcher = checked(BAD)
    first = favoured(tmp_path, searcher=searcher, effort__uniform_baselines=1, effort__references=False)
    assert first.study.choice.by == "loss"
    longer = favoured(tmp_path, searcher=searcher)
    assert len(longer.study.points) > len(first.study.points)
    assert longer.study.surrogate_check.spearman_good == BAD
    assert longer.study.choice.by == "loss"
    raw = (tmp_path / "trials.jsonl").read_bytes()
    assert favoured(tmp_path, searcher=searcher).best == longer.best
    assert (tmp_path / "trials.jsonl").read_bytes() == raw


def test_another_winner_of_more_seeds_is_fine_tuned_wherever_that_was_cut_off(tmp_path: Path) -> None:
    few = favoured(tmp_path / "run", lost=SEEDS[3:], effort__sequential=True)
    assert (confirmed(few.study), few.best["winner_kind"]) == (list(SEEDS[:3]), "mixed")
    before = len((tmp_path / "run" / "trials.jsonl").read_bytes().splitlines())
    more = favoured(tmp_path / "run", lost=SEEDS[3:])
    assert confirmed(more.study) == list(SEEDS)
    assert more.best["winner_kind"] in ("uniform", "fractional")
    final, end = more.study.final, more.study.end
    assert final.delivered == final.winner == end.best == more.winner.fingerprint
    assert str(list(more.winner.ranks)) in (tmp_path / "run" / "quant_manifest.json").read_text()
    whole = favoured(tmp_path / "whole", lost=SEEDS[3:])
    assert comparable(more.best) == comparable(whole.best)
    lines = (tmp_path / "run" / "trials.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(before, len(lines)):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "trials.jsonl").write_bytes(b"".join(lines[:kept]))
        assert comparable(favoured(folder, lost=SEEDS[3:]).best) == comparable(whole.best)


def test_same_winner_of_more_seeds_is_trained_once_and_seeds_are_kept(tmp_path: Path) -> None:
    few = favoured(tmp_path, effort__sequential=True)
    more = favoured(tmp_path)
    assert (confirmed(few.study), confirmed(more.study)) == (list(SEEDS[:3]), list(SEEDS))
    assert few.winner == more.winner
    lower = favoured(tmp_path, effort="quick", effort__sequential=True)
    assert (confirmed(lower.study), lower.best) == (list(SEEDS), more.best)
    assert [len(lines_of(tmp_path, kind)) for kind in ("confirmation", "final", "end")] == [2, 1, 2]


def test_higher_effort_confirms_longer_and_a_lower_one_keeps_that(tmp_path: Path) -> None:
    short = long_run(tmp_path, Contrary, effort__max_full_trials=12).study
    longer = long_run(tmp_path, Contrary).study
    assert short.points == longer.points
    assert [s.confirmation.steps for s in (short, longer)] == [8, 24]
    lower = long_run(tmp_path, Contrary, effort__max_full_trials=12).study
    assert (lower.confirmation_steps, longer.confirmation_steps) == (8, 24)
    assert lower.confirmation == longer.confirmation
    assert [e.spec.key for e in lower.trials] == [e.spec.key for e in longer.trials]


def test_a_candidate_that_an_extension_finds_is_confirmed(tmp_path: Path) -> None:
    class First(Contrary):
        """Stops after one allocation."""

        def ask(self, n: int) -> list:  # type: ignore[type-arg]
            return super().ask(n) if len(self._queue) == 2 else []

    short = favoured(tmp_path, searcher=First)
    longer = favoured(tmp_path, searcher=Contrary, effort__sequential=True)
    assert longer.study.confirmation.candidate != short.study.confirmation.candidate
    assert longer.winner == longer.study.confirmation.candidate
    assert uniform(4, "nf4", 4) != longer.winner
