"""Efforts at their own ends on a small table, and what is asked of them."""

from typing import Any

import pytest

from bench.emulator.oracle import load_oracle
from bench.search.efforts import ended, targets_of
from bench.search.play import Arena, Game, make_arena
from qra_bo.config import load_config
from qra_bo.study.baselines import fill, uniform_baselines
from tests.bench.tables import make_setting, make_table


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    setting = make_setting()
    oracle = load_oracle(make_table(tmp_path_factory.mktemp("table")), "boosted", setting.space)
    budget = oracle.table.facts.budgets[1]
    return make_arena(oracle, setting.space, budget, setting.predictors[budget.scope])


@pytest.mark.parametrize("limit", [1, 2, 3, None])
def test_game_tries_as_many_baselines_as_a_run(arena: Arena, limit: int | None) -> None:
    game = Game(arena, 0)
    done = game.baselines(limit)
    choices = uniform_baselines(arena.rules, arena.problem.profile)
    first = choices if limit is None else choices[:max(1, limit - 1)]
    assert [e.allocation for e in done[:len(first)]] == first
    filled = fill(arena.rules, min(done[:len(first)], key=lambda e: e.loss or 9.9).allocation)
    last = [] if limit == 1 else [filled] if filled not in first else choices[len(first):len(first) + 1]
    assert [e.allocation for e in done[len(first):]] == (last if limit is not None or filled not in first else [])


@pytest.mark.parametrize(("stop", "stopped"), [("1", True), ("null", False)])
def test_costs_of_an_effort_add_up_to_its_end(arena: Arena, stop: str, stopped: bool) -> None:
    config = load_config(["effort=quick", f"effort.stop={stop}", "method.draws=1", "method.rates=null",
                          "method.n_prior=1"])
    found = ended(arena, config, 0, (0.0, 1.0))
    profile = (512 + 9000 / 3) / arena.equivalent
    assert found["before"] == pytest.approx(profile + len(config.calibrate.lr_scales) + 3)
    repeats = found["spent"] - found["before"] - found["proposals"]
    assert repeats in (pytest.approx(0), pytest.approx(2))
    assert found["stopped"] is stopped
    if stopped:
        assert found["proposals"] == 1  # nothing says what the first may gain
    else:
        assert found["before"] + found["proposals"] >= 12 > found["before"] + found["proposals"] - 1


def row(task: str, emulator: str, quick: float, **changes: Any) -> dict[str, Any]:
    return {"task": task, "emulator": emulator, "regret": 0.2, "first_proposal": 0.2, "search_at_40": 0.1,
            "quick": quick, "quick_spent": 10.0, "normal": 0.3, **changes}


def test_targets_are_met_only_by_all_arenas_and_ten_seeds() -> None:
    good = [row(task, emulator, 0.14) for task in ("gsm8k", "plays") for emulator in ("boosted", "network")] * 2
    assert all(t.met for t in targets_of(good, 10))
    assert [t.met for t in targets_of(good, 9)] == [True, True, False, False, False, False]
    assert not any(t.met for t in targets_of(good[:7], 10))
    worse = [*good[:5], *(row("gsm8k", "network", 0.16, regret=0.21, quick_spent=10.5, normal=0.4) for _ in range(3))]
    assert [(t.value, t.met) for t in targets_of(worse, 10)] == [
        (5.0, False), (0.2, True), (5.0, False), (0.14, True), (10.0, True), (0.4, False)]
