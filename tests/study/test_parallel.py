"""Several evaluations at once: one writer, any order of ends, and a replay that follows it."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qra_bo.execution.base import Executor, InProcessExecutor, OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.execution.pool import Limits
from qra_bo.oracle.protocol import Progress
from qra_bo.study.engine import RunOutcome
from qra_bo.study.journal import read_journal
from qra_bo.study.lines import begun_study
from qra_bo.study.trial_runner import TrialRunner
from qra_bo.trials import TrialResult, TrialSpec
from tests.study import problem
from tests.study.oracles import PlantedOracle
from tests.study.problem import EQUIVALENT, Recorded, comparable, keys, lines_of, warnings_of

TARGET = "tests.study.oracles:make"


class ShuffledExecutor(InProcessExecutor):
    """Several imagined workers that end in an order drawn at random; a test may have it fail after so many ends."""

    def __init__(self, workers: int, seed: int, ends: int | None = None) -> None:
        super().__init__(PlantedOracle())
        self.workers = workers
        self._rng, self._left = np.random.default_rng(seed), ends
        self._under_way: list[TrialSpec] = []
        self.most = 0

    def submit(self, request: TrialSpec) -> None:
        self._under_way.append(request)

    def finished(self, progress: Progress) -> tuple[TrialSpec, TrialResult]:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left = None if self._left is None else self._left - 1
        self.most = max(self.most, len(self._under_way))
        n = min(self.workers, len(self._under_way))  # those beyond wait for a place
        super().submit(self._under_way.pop(int(self._rng.integers(n))))
        return super().finished(progress)


def run(folder: Path, executor: Executor, **changes: Any) -> RunOutcome:
    return problem.run(folder, executor, Recorded, **changes)


def searched(folder: Path) -> list[str]:
    return [e["key"] for e in lines_of(folder, "trial") if e["stage"] == "evolution"]


def test_one_worker_among_many_kinds_gives_one_result(tmp_path: Path) -> None:
    sequential = run(tmp_path / "a", InProcessExecutor(PlantedOracle()))
    other = run(tmp_path / "b", ShuffledExecutor(1, seed=3))
    processes = run(tmp_path / "c", LocalExecutor([OracleSpec(TARGET, {})], Limits(60)))
    for folder, outcome in (("b", other), ("c", processes)):
        assert comparable(outcome.best) == comparable(sequential.best)
        assert keys(tmp_path / folder) == keys(tmp_path / "a")
    assert all("workers" not in e for e in lines_of(tmp_path / "a", "trial"))


def test_proposals_are_kept_under_way_and_their_number_is_in_the_journal(tmp_path: Path) -> None:
    executor = ShuffledExecutor(4, seed=0)
    outcome = run(tmp_path, executor)
    assert executor.most >= 4
    assert {e["workers"] for e in lines_of(tmp_path, "trial")} == {4}
    assert len(keys(tmp_path)) == len(set(keys(tmp_path)))
    cost = outcome.study.search_cost.tokens / EQUIVALENT
    assert 24 <= cost < 25.5  # what is pending is planned for: an effort is not overdrawn by a batch
    confirmed = next(e for e in read_journal(tmp_path / "trials.jsonl").events if e["event"] == "confirmation")
    better = confirmed["high"] < 0
    assert (outcome.best["winner_kind"] == "mixed") == better
    assert outcome.winner.to_json() == confirmed["candidate" if better else "reference"]
    moves = Recorded.made[-1].moves
    asked = [i for i, move in enumerate(moves) if move and not isinstance(move[0], str)]
    assert asked[:4] == [1, 2, 3, 4]  # after the uniform baselines, four are asked for before any comes back


@pytest.mark.parametrize("seed", range(4))
def test_stopped_anywhere_and_resumed_with_any_number_of_workers(tmp_path: Path, seed: int) -> None:
    """What a searcher was asked and told is one sequence, whoever replays it, and nothing is evaluated twice."""
    rng = np.random.default_rng(seed)
    Recorded.made.clear()
    for _ in itertools.count():
        before = keys(tmp_path) if (tmp_path / "trials.jsonl").exists() else []
        workers, ends = int(rng.integers(1, 6)), int(rng.integers(1, 14))
        try:
            outcome = run(tmp_path, ShuffledExecutor(workers, int(rng.integers(99)), ends))
        except KeyboardInterrupt:
            assert keys(tmp_path)[:len(before)] == before
            continue
        break
    found = keys(tmp_path)
    assert len(found) == len(set(found))
    assert outcome.study.search_cost.tokens >= 24 * EQUIVALENT
    replayed = run(tmp_path, ShuffledExecutor(2, 0), effort__max_full_trials=26)
    first, last = Recorded.made[-2].moves, Recorded.made[-1].moves
    assert last[:len(first)] == first  # the replay asked and told as the session before it did, to its end
    told = [m[0] for m in last if m and isinstance(m[0], str)][1:]
    assert told == searched(tmp_path)
    assert replayed.study.search_cost.tokens >= 26 * EQUIVALENT
    assert len(keys(tmp_path)) == len(set(keys(tmp_path)))


def test_workers_of_one_machine_give_one_result_whichever_is_faster(tmp_path: Path) -> None:
    class Ordered(ShuffledExecutor):
        in_order = True

    outcomes = [run(tmp_path / str(seed), Ordered(2, seed)) for seed in range(3)]
    assert len({json.dumps(keys(tmp_path / str(seed))) for seed in range(3)}) == 1
    assert len({json.dumps(comparable(outcome.best), sort_keys=True) for outcome in outcomes}) == 1
    for _ in itertools.count():  # what ended out of turn is kept, and nothing is evaluated twice
        try:
            run(tmp_path / "cut", Ordered(3, 7, ends=3))
        except KeyboardInterrupt:
            continue
        break
    found = keys(tmp_path / "cut")
    assert len(found) == len(set(found))


def test_time_that_is_up_lets_what_is_under_way_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrialRunner, "search_seconds",
                        property(lambda self: 3600.0 * (len(self.study.trials) >= 20)))
    run(tmp_path, ShuffledExecutor(4, 1), max_hours=.5)
    ended = len(searched(tmp_path))
    assert sum("max_hours=0.5" in m for m in warnings_of(tmp_path)) == 1
    raw = (tmp_path / "trials.jsonl").read_bytes()
    run(tmp_path, ShuffledExecutor(4, 1), max_hours=.5)
    assert (tmp_path / "trials.jsonl").read_bytes() == raw
    run(tmp_path, ShuffledExecutor(2, 1), max_hours=2.0)
    assert len(searched(tmp_path)) > ended
    assert len(keys(tmp_path)) == len(set(keys(tmp_path)))


def test_a_damaged_line_of_a_parallel_run_is_done_again(tmp_path: Path) -> None:
    run(tmp_path, ShuffledExecutor(3, 5))
    path = tmp_path / "trials.jsonl"
    lines = path.read_bytes().split(b"\n")
    number = [i for i, line in enumerate(lines) if b'"evolution"' in line][4]
    lost = json.loads(lines[number])["key"]
    lines[number] = lines[number].replace(b'"state":"ok"', b'"state":"xx"')
    path.write_bytes(b"\n".join(lines))
    resumed = run(tmp_path, ShuffledExecutor(3, 6), effort__max_full_trials=25)
    assert lost in {e.spec.key for e in resumed.study.trials}
    assert len(keys(tmp_path)) == len(set(keys(tmp_path)))


def test_worker_processes_share_the_work_and_a_lost_one_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "faults").mkdir()
    spec = OracleSpec(TARGET, {"pause": .05, "faults": {"6": "kill", "11": "exit"}, "folder": str(tmp_path / "faults")})
    executor = LocalExecutor([spec] * 3, Limits(60, retries=1))
    outcome = run(tmp_path / "run", executor)
    assert outcome.study.states["failed"] == 0
    assert {e["workers"] for e in lines_of(tmp_path / "run", "trial")} == {3}
    assert begun_study(tmp_path / "run").winner == outcome.winner
    assert all(w.process is None for w in executor._workers)


def test_at_the_end_no_worker_has_left_a_checkpoint_that_nothing_continues(tmp_path: Path) -> None:
    class Keeping(PlantedOracle):
        """Leaves all checkpoints, as workers do that have been ended since."""

        def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
            (tmp_path / "checkpoints" / request.training).touch()
            return super().evaluate(request, progress)

        def forget(self, progress: Progress, trainings: Sequence[str]) -> dict[str, Any]:
            for name in trainings:
                (tmp_path / "checkpoints" / name).unlink()
            return {}

    (tmp_path / "checkpoints").mkdir()
    done = run(tmp_path / "run", InProcessExecutor(Keeping()), effort__uniform_baselines=3).study.trials
    full = {e.spec.training for e in done if e.spec.steps == e.spec.schedule_steps}
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {e.spec.training for e in done} - full
    assert left
