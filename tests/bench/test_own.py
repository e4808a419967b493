"""A method of one's own beside the published ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.emulator.oracle import load_oracle
from bench.search import own
from bench.search.methods import EQUIVALENTS, Entry
from bench.search.play import make_arena, play
from tests.bench.tables import make_table, predict
from tests.spaces import make_space

TARGET = "examples.own_searcher.CoordinateSearch"


def test_own_method_stands_beside_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    space = make_space(4)
    oracle = load_oracle(make_table(tmp_path), "boosted", space)
    budget = oracle.table.facts.budgets[0]
    arena = make_arena(oracle, space, budget, predict)
    other = replace(arena, budget=oracle.table.facts.budgets[1])
    place: dict[str, Any] = {"task": oracle.table.facts.task, "emulator": "boosted", "budget": budget.text,
                             "best_known": 3.0, "best_uniform": 5.0}
    rows = [{**place, "method": name, "regret": 9.0, "finals": {str(seed): 0.1 * i + seed for seed in range(10)},
             "refused": 2.0 + i, "costs": [8.0], "curve": [1.0]}
            for i, name in enumerate(own.BESIDE.values())]
    fitted = list[str]()
    monkeypatch.setattr(own, "published_rows", lambda path: rows)
    monkeypatch.setattr(own, "REFERENCE_BUDGETS", [(b.text, b.scope) for b in oracle.table.facts.budgets])
    monkeypatch.setattr(own, "arenas", lambda folder, families: fitted.extend(families) or [arena, other])
    assert own.main([TARGET, "changes=1", TARGET, "changes=2", "--tasks", "plays", "--seeds", "2", "--emulators",
                     "boosted", "--budgets", budget.text, "--out", str(tmp_path / "own.json")]) == 0
    said = capsys.readouterr()
    header, head, *lines = said.out.splitlines()
    assert header.startswith("2 of the 10 published seeds")
    assert head.split() == ["arena", "method", "regret", "min", "to", "max", "seeds", "refused"]
    assert fitted == ["boosted"]
    assert said.err.splitlines()[:2] == ["fitting the boosted emulator of plays",
                                         f"{arena.name}: CoordinateSearch changes=1, search 1 of 2"]
    kept = json.loads((tmp_path / "own.json").read_text())["rows"]
    names = ["CoordinateSearch changes=1", "CoordinateSearch changes=2", *own.BESIDE]
    expected = [[0.1 * i, 0.1 * i + 1] for i in range(len(own.BESIDE))]  # published regrets of seeds 0 and 1
    refusals = [row["refused"] for row in rows]
    for changes in (2, 1):
        entry = Entry("", "", "peer", {"_target_": TARGET, "changes": changes})
        runs = [play(arena, entry, seed, EQUIVALENTS) for seed in range(2)]
        expected.insert(0, [(run["trace"][-1][1] - 3.0) / 2.0 for run in runs])
        refusals.insert(0, sum(run["refused"] for run in runs) / 2)
    assert [line.removeprefix(arena.name).strip().startswith(name)
            for name, line in zip(names, lines, strict=True)] == [True] * 7
    for line, row, name, regrets, turned_away in zip(lines, kept, names, expected, refusals, strict=True):
        median, least, to, most, seeds, refused = line.split()[-6:]
        assert [float(cell) for cell in (median, least, most)] == pytest.approx(
            [np.mean(regrets), min(regrets), max(regrets)], abs=6e-3)
        assert (to, seeds, float(refused)) == ("to", "2", turned_away)
        assert (row["method"], row["refused"]) == (name, turned_away)
        assert [row["regrets"][str(seed)] for seed in range(2)] == pytest.approx(regrets)
    for row in kept[:2]:
        assert {seed: trace[-1][1] for seed, trace in row["traces"].items()} == row["regrets"]
        assert sum(row["refusals"].values()) / 2 == row["refused"]


def test_spread_is_from_the_least_to_the_largest_seed() -> None:
    assert own.spread([0.5, 0.25, 2.0]).split() == ["0.50", "0.25", "to", "2.00", "3"]


def test_methods_are_named_by_their_class_and_by_options_where_it_is_shared() -> None:
    assert own.methods_of(["a.B", "x=1", "c.D"]) == {"B": {"_target_": "a.B", "x": 1}, "D": {"_target_": "c.D"}}
    assert list(own.methods_of(["a.B", "x=1", "c.B", "x=[1,2]"])) == ["B x=1", "B x=[1,2]"]


@pytest.mark.parametrize(("given", "message"), [(["no.such.Searcher"], "can't be imported"),
                                                ([TARGET, "changes"], "KEY=VALUE"),
                                                (["changes=2"], "PACKAGE.MODULE.CLASS"),
                                                ([TARGET, TARGET], "given once"),
                                                ([TARGET, "--out", "no/such/folder/own.json"], "folder that exists"),
                                                ([TARGET, "speed=2"], "speed")])
def test_own_method_that_can_not_be_made_exits_2(given: list[str], message: str,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert own.main(given) == 2
    assert message in capsys.readouterr().err
