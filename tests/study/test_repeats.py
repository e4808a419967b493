"""Repeats on further training seeds and recommendations, through the engine."""

import json
from pathlib import Path

import pytest

from qra_bo.records import Fidelity, Proposal
from qra_bo.searcher import SearchProblem
from qra_bo.space import Allocation
from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.options import repeat_seeds, training_seeds
from qra_bo.study.searching import SearcherError
from tests.study.problem import Walk, make_config, make_parts

MIXED = (Allocation(("ref8", "ref4", "ref2", "ref4"), (2, 2, 4, 2)),
         Allocation(("ref2", "ref4", "ref2", "ref4"), (1, 2, 1, 2)))


class Repeating(Walk):
    """Two allocations, then both again on two further training seeds; recommends the one with the larger loss."""

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        self._queue = [Proposal(a, Fidelity.HIGH, "repeat" if k else "global", k) for k in range(3) for a in MIXED]

    def ask(self, n: int) -> list[Proposal]:
        return [self._queue.pop(0) for _ in self._queue[:n]]

    def recommend(self) -> list[Allocation]:
        losses = {e.allocation: e.loss or 0.0 for e in self.told if e.allocation in MIXED and e.stage == "global"}
        return sorted(losses, key=lambda a: -losses[a])


def run(folder: Path, seeds: tuple[int, ...] = (31, 32)) -> RunOutcome:
    return Engine(make_config(folder, repeat_seeds=seeds), make_parts(searcher=Repeating)).run()


def test_repeats_inform_the_search_and_are_never_incumbent(tmp_path: Path) -> None:
    outcome = run(tmp_path)
    study = outcome.study
    repeats = [e for e in study.evaluations if e.stage == "repeat"]
    assert [(e.allocation, e.request.train_seed) for e in repeats] == [(a, s) for s in (31, 32) for a in MIXED]
    assert not set(repeats) & set(study.points)
    assert set(repeats) < set(study.searched)
    assert {e.request.train_seed for e in study.points} == {11}
    assert study.search_cost.tokens > sum(e.measurement.training_tokens for e in study.points)


def test_what_is_recommended_is_confirmed_rather_than_the_least_loss(tmp_path: Path) -> None:
    outcome = run(tmp_path)
    study = outcome.study
    losses = {a: study.point(a).loss for a in MIXED}  # type: ignore[union-attr]
    least, largest = sorted(MIXED, key=lambda a: losses[a] or 0.0)
    assert study.best_mixed is not None
    assert study.best_mixed.allocation == least
    assert Allocation.from_json(study.last["confirmation"]["candidate"]) == largest
    assert outcome.found.allocation == largest


def test_a_run_with_repeats_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    lines = (tmp_path / "whole" / "trials.jsonl").read_bytes().split(b"\n")
    first = next(i for i, line in enumerate(lines) if b'"stage": "repeat"' in line or b'"stage":"repeat"' in line)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "trials.jsonl").write_bytes(b"\n".join([*lines[:first + 1], b""]))
    again = run(tmp_path / "cut")
    assert [e.request.key for e in again.study.evaluations] == [e.request.key for e in whole.study.evaluations]
    assert again.best["loss"] == whole.best["loss"]
    assert json.loads(lines[0])["event"] == "header"


def test_a_training_seed_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SearcherError, match="a training seed that there is not"):
        run(tmp_path, (31,))


def test_repeat_seeds_are_fixed_distinct_and_apart_from_all_others() -> None:
    train, confirm = training_seeds(3, 8)
    drawn = repeat_seeds(3, 8, {train, *confirm})
    assert len({train, *confirm, *drawn}) == 17
    assert drawn == repeat_seeds(3, 8, {train})
    assert repeat_seeds(3, 4, {drawn[0]}) == drawn[1:5]
