"""The search ends before a trial that is unlikely to gain more than the noise, and repeats that when it is resumed."""

from pathlib import Path

import pytest

from qra_bo.report.live import line_of
from qra_bo.study.engine import RunOutcome
from qra_bo.study.journal import read_journal
from tests.study.problem import Walk, run
from tests.study.test_parallel import ShuffledExecutor


class Fading(Walk):
    """Each proposal has half the chance of the one before: 0.5, 0.25, ..."""

    chance_of_gain: float | None = 1.0

    def ask(self, n: int) -> list:
        self.chance_of_gain = (self.chance_of_gain or 1.0) / 2
        return super().ask(n)


def searched(outcome: RunOutcome) -> list[str]:
    return [e.spec.key for e in outcome.study.trials if e.stage == "evolution"]


@pytest.mark.parametrize(("stop", "trials"), [(0.3, 1), (0.2, 2), (0.1, 3)])
def test_search_ends_before_the_first_unlikely_trial(tmp_path: Path, stop: float, trials: int) -> None:
    outcome = run(tmp_path, searcher=Fading, effort__stop=stop)
    assert len(searched(outcome)) == trials
    stopped = outcome.study.stopped
    assert stopped.chance < stop <= 2 * stopped.chance
    assert f"chance of {stopped.chance:.0%}, below {stop:.0%}" in line_of(stopped, outcome.study, None)
    assert outcome.study.confirmation is not None


def test_stopped_search_stops_again_and_takes_over_a_longer_one(tmp_path: Path) -> None:
    first = run(tmp_path, searcher=Fading, effort__stop=0.2)
    again = run(tmp_path, searcher=Fading, effort__stop=0.2)
    assert searched(again) == searched(first)
    assert sum(e["event"] == "stopped" for e in read_journal(tmp_path / "trials.jsonl").events) == 1
    longer = run(tmp_path, searcher=Fading, effort__stop=None)
    alone = run(tmp_path / "alone", searcher=Fading, effort__stop=None)
    assert searched(longer) == searched(alone)
    assert len(searched(longer)) > 3
    path, after = tmp_path / "trials.jsonl", len(searched(first)) + 1
    lines = path.read_bytes().splitlines(keepends=True)
    trials = [i for i, line in enumerate(lines) if b'"trial"' in line and b'"stage":"evolution"' in line]
    path.write_bytes(b"".join(lines[:trials[after - 1] + 1]))  # the longer one was killed
    again = run(tmp_path, searcher=Fading, effort__stop=0.2)
    assert searched(again) == searched(longer)[:after]
    assert again.study.confirmation is not None


def test_several_workers_stop_where_they_stopped(tmp_path: Path) -> None:
    first = run(tmp_path, ShuffledExecutor(2, 0), searcher=Fading, effort__stop=0.1)
    again = run(tmp_path, ShuffledExecutor(3, 1), searcher=Fading, effort__stop=0.1)
    assert searched(again) == searched(first)
    assert len(searched(first)) == 3
