"""A method of one's own beside the published ones."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.emulator.oracle import load_oracle
from bench.search import own
from bench.search.methods import EQUIVALENTS, Entry
from bench.search.play import make_arena, play
from qra_bo.searchers.base import SearchProblem
from qra_bo.study.intervals import paired_interval
from qra_bo.trials import Fidelity, Proposal, Trial
from qra_bo.utils.formatting import signed
from tests.bench.tables import make_table, predict
from tests.spaces import make_space

TARGET = "examples.own_searcher.CoordinateSearch"


class Repeats:
    """Proposes twice what it was told of first."""

    name = "repeats"

    def __init__(self, problem: SearchProblem) -> None:
        self.left, self.known = 2, list[Trial]()

    def ask(self, n: int) -> list[Proposal]:
        self.left -= 1
        return [Proposal(self.known[-1].allocation, Fidelity.LOW, "global")] * (self.left >= 0)

    def tell(self, trials: Sequence[Trial], /) -> None:
        self.known += trials


class Raises(Repeats):
    def ask(self, n: int) -> list[Proposal]:
        raise ZeroDivisionError("no idea")


class Silent:
    def __init__(self, problem: SearchProblem) -> None:
        self.name = "silent"


def test_own_method_stands_beside_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    space = make_space(4)
    oracle = load_oracle(make_table(tmp_path), "boosted", space)
    budget = oracle.table.facts.budgets[0]
    arena = make_arena(oracle, space, budget, predict)
    rows = [{"task": oracle.table.facts.task, "emulator": "boosted", "budget": budget.text, "best_known": 3.0,
             "best_uniform": 5.0, "method": name, "regret": 9.0, "refused": 2.0, "costs": [8.0], "curve": [1.0],
             "finals": {str(seed): 0.1 * i + seed for seed in range(10)}} for i, name in enumerate(own.BESIDE.values())]
    monkeypatch.setattr(own, "published_rows", lambda path: rows)
    monkeypatch.setattr(own, "REFERENCE_BUDGETS", [(budget.text, budget.scope)])
    monkeypatch.setattr(own, "arenas", lambda folder, families: [arena])
    assert own.main([TARGET, "changes=1", "--tasks", "plays", "--seeds", "1", "--emulators", "boosted",
                     "--out", str(tmp_path / "own.json")]) == 0
    kept = json.loads((tmp_path / "own.json").read_text())["rows"]
    assert [row["method"] for row in kept] == ["CoordinateSearch", *own.BESIDE]
    assert "which end a run" not in capsys.readouterr().err
    given = ["--tasks", "plays", "--seeds", "1", "--emulators", "boosted"]
    assert own.main([f"{__name__}.Raises", f"{__name__}.Repeats", *given]) == 1  # the other one is played all the same
    out, err = capsys.readouterr()
    assert ("Raises failed" in err, "no idea" in err, "1 proposals over the budget" in err) == (True,) * 3
    assert [name in out for name in ("Repeats", "Raises")] == [True, False]
    run = play(arena, Entry("", "", "peer", {"_target_": TARGET, "changes": 1}), 0, EQUIVALENTS)
    assert kept[0]["regrets"] == {"0": pytest.approx((run["trace"][-1][1] - 3.0) / 2.0)}
    assert [row["regrets"]["0"] for row in kept[1:]] == pytest.approx([0.1 * i for i in range(len(own.BESIDE))])


@pytest.mark.parametrize("arenas", [1, 2, 4])
def test_differences_are_paired_over_many_arenas_or_else_over_searches(arenas: int) -> None:
    others = [{"method": name, "regrets": {"0": 0.0, "1": 0.5}} for name in own.BESIDE for _ in range(arenas)]
    mine = [{"method": "mine", "regrets": {"0": 0.5 + i, "1": 0.5 + i}} for i in range(arenas)]
    between = paired_interval([0.25 + i for i in range(arenas)] if arenas == 4 else
                              [d + i for i in range(arenas) for d in (0.5, 0.0)])
    over = "4 arenas" if arenas == 4 else f"{2 * arenas} searches"
    found = [*own.differences([*mine, *others], ["mine"], 2)]
    assert len(found) == len(own.BESIDE)
    assert found[0] == (f"mine less {next(iter(own.BESIDE))}: {signed(between.mean, 2)} (95 % over {over}: "
                        f"{signed(between.low, 2)} to {signed(between.high, 2)})")


@pytest.mark.parametrize(("given", "message"), [(["no.such.Searcher"], "can't be imported"),
                                                ([TARGET, "changes"], "KEY=VALUE"),
                                                (["changes=2"], "PACKAGE.MODULE.CLASS"),
                                                ([TARGET, TARGET], "given once"),
                                                ([f"{__name__}.Silent"], "it lacks ask, tell"),
                                                ([TARGET, "--out", "no/such/folder/own.json"], "folder that exists"),
                                                ([TARGET, "speed=2"], "speed")])
def test_own_method_that_can_not_be_made_exits_2(given: list[str], message: str,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert own.main(given) == 2
    assert message in capsys.readouterr().err
