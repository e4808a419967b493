"""A method of one's own beside the published ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.search import own
from bench.search.methods import EQUIVALENTS, Entry
from bench.search.play import make_arena, play
from qra_bo.oracle.emulator.oracle import load_oracle
from tests.bench.tables import make_setting, make_table

TARGET = "examples.own_searcher.CoordinateSearch"


def test_own_method_stands_beside_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    setting = make_setting()
    oracle = load_oracle(make_table(tmp_path), "boosted", setting.space)
    budget = oracle.table.facts.budgets[0]
    arena = make_arena(oracle, setting.space, budget, setting.predictors[budget.scope])
    place: dict[str, Any] = {"task": oracle.table.facts.task, "emulator": "boosted", "budget": budget.text,
                             "best_known": 3.0, "best_uniform": 5.0}
    rows = [{**place, "method": name, "regret": 0.1 * i} for i, name in enumerate(own.BESIDE)]
    monkeypatch.setattr(own, "published_rows", lambda path: rows)
    monkeypatch.setattr(own, "arenas", lambda folder, families: [arena])
    assert own.main([TARGET, "changes=1", "--tasks", "plays", "--seeds", "2"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["arena", "refused", "yours"]
    entry = Entry("yours", "", "peer", {"_target_": TARGET, "changes": 1})
    losses = [play(arena, entry, seed, EQUIVALENTS)["trace"][-1][1] for seed in range(2)]
    expected = [(np.median(losses) - 3.0) / 2.0, 0.0, 0.1, 0.2, 0.3]
    assert [float(cell) for cell in line.split()[-5:]] == pytest.approx(expected, abs=6e-3)


@pytest.mark.parametrize(("given", "message"), [(["no.such.Searcher"], "can't be imported"),
                                                ([TARGET, "changes"], "KEY=VALUE"),
                                                ([TARGET, "speed=2"], "speed")])
def test_own_method_that_can_not_be_made_exits_2(given: list[str], message: str,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert own.main(given) == 2
    assert message in capsys.readouterr().err
