"""The comparison of searches: cost and incumbents of one, regrets and targets of many."""

import json
from typing import Any

import numpy as np
import pytest

from bench.emulator.oracle import load_oracle
from bench.search.methods import EVERYTHING
from bench.search.play import FREE_REFUSALS, Arena, Game, make_arena, on_ladders, play
from bench.search.summary import arena_rows, best_found, for_good, paired_rows, regrets, search_rows, targets_of
from qra_bo.space import uniform
from qra_bo.trials import Fidelity, Proposal
from tests.bench.tables import make_table, predict
from tests.spaces import make_space

SPACE = make_space(4)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    folder = make_table(tmp_path_factory.mktemp("table"))
    oracle = load_oracle(folder, "boosted", SPACE)
    budget = oracle.table.facts.budgets[0]
    return make_arena(oracle, SPACE, budget, predict)


@pytest.mark.parametrize("name", ["random", "qra_bo"])
def test_a_search_spends_what_it_may_and_its_incumbent_is_the_best_it_saw(arena: Arena, name: str) -> None:
    run = play(arena, EVERYTHING[name], 3, 11.0)
    costs = [cost for cost, _ in run["trace"]]
    assert costs == sorted(costs)
    assert 11.0 <= costs[-1] < 12.0
    losses = [f["loss"] for f in run["finds"]]
    assert losses == sorted(losses)
    assert run["trace"][-1][1] == run["finds"][0]["true_loss"]
    assert run["best_uniform"] < np.inf
    assert run == {**play(arena, EVERYTHING[name], 3, 11.0), "cpu_seconds": run["cpu_seconds"]}
    assert json.loads(json.dumps(run)) == run


def test_cost_counts_profile_promotions_and_refusals(arena: Arena) -> None:
    game = Game(arena, 0)
    facts = arena.oracle.table.facts
    assert game.spent == pytest.approx(512 + 9000 / 3)
    start, allocation, per_step = game.spent, uniform(4, "nf4", 2), 4 * facts.length
    game.evaluate(Proposal(allocation, Fidelity.LOW, "global"))
    assert game.spent - start == pytest.approx(12 * per_step + facts.eval_tokens / 3)
    start = game.spent
    game.evaluate(Proposal(allocation, Fidelity.HIGH, "global"))
    assert game.spent - start == pytest.approx(12 * per_step + facts.eval_tokens / 3)
    arena.oracle.emulator._ranks = (1, 4)
    start = game.spent
    refused = [game.evaluate(Proposal(uniform(4, "hqq2", 8), Fidelity.HIGH, "global")) for _ in range(FREE_REFUSALS)]
    assert not any(e.ok for e in refused)
    assert game.spent == start
    game.evaluate(Proposal(uniform(4, "hqq2", 8), Fidelity.HIGH, "global"))
    arena.oracle.emulator._ranks = (1, 8)
    assert game.spent - start == pytest.approx(arena.equivalent, abs=1)
    assert game.refused == FREE_REFUSALS + 1


def test_another_search_finds_nothing_done(arena: Arena) -> None:
    allocation = uniform(4, "nf4", 2)
    Game(arena, 0).evaluate(Proposal(allocation, Fidelity.LOW, "global"))
    again = Game(arena, 0)
    start = again.spent
    again.evaluate(Proposal(allocation, Fidelity.HIGH, "global"))
    assert again.spent - start == pytest.approx(arena.equivalent)


def test_baselines_off_the_ladder_are_told_at_the_rank_below(arena: Arena) -> None:
    space = arena.problem.space
    assert space.ranks == (1, 2, 4, 8)
    game = Game(arena, 0)
    told = [game.evaluate(Proposal(uniform(4, "nf4", r), Fidelity.HIGH, "baseline")) for r in (3, 2, 7)]
    seen = on_ladders(space, told)
    assert [e.allocation.ranks[0] for e in seen] == [2, 4]
    assert [e.loss for e in seen] == [told[1].loss, told[2].loss]
    assert all(space.contains(e.spec.allocation) for e in seen)


def made(method: str, kind: str, seed: int, losses: list[float], **more: Any) -> dict[str, Any]:
    """A finished search that spends one equivalent a loss."""
    return {"arena": "a", "task": "plays", "emulator": "boosted", "budget": "uniform:4,4", "method": method,
            "kind": kind, "settings": "s", "note": "", "seed": seed, "equivalents": float(len(losses)),
            "best_uniform": 4.1, "trace": [[float(i + 1), loss] for i, loss in enumerate(losses)],
            "after_baselines": 1.0, "finds": [], "refused": 0, "cpu_seconds": 1.0, "rows_sha256": "r", **more}


def test_regret_in_closed_form() -> None:
    run = made("x", "peer", 0, [4.1, 4.05, 4.02])
    np.testing.assert_allclose(regrets(run, 4.0, 4.1, np.array([1.0, 2.4, 9.0])), [1.0, 0.5, 0.2])
    with pytest.raises(ValueError, match="the first incumbent is there after"):
        regrets(run, 4.0, 4.1, np.array([0.5]))
    assert best_found([run, made("y", "peer", 0, [4.3], finds=[{"true_loss": 4.01}])]) == 4.01


def many(ours: list[float], peer: list[float]) -> list[dict[str, Any]]:
    return [run for seed in range(10)
            for run in (made("qra_bo", "qra_bo", seed, ours), made("TPE", "peer", seed, peer))]


def test_rows_and_targets_say_who_wins() -> None:
    runs = many([4.1, 4.0, 4.0, 4.0, 4.0, 4.0], [4.1, 4.1, 4.1, 4.1, 4.1, 4.05])
    rows = arena_rows(runs)
    assert [(r["method"], r["regret"]) for r in rows] == [("qra_bo", 0.0), ("TPE", pytest.approx(0.5))]
    assert rows[0]["cost_to_best_peer"] == 2.0
    assert rows[1]["cost_to_best_peer"] == 6.0
    expected = [("plays", "boosted", "uniform:4,4")]
    assert [(t.value, t.met) for t in targets_of(rows, expected)] == 2 * [
        (0.0, True), (pytest.approx(1 / 3), True), (1.0, True)]
    told = search_rows([*runs, *(made("KL", "informed", seed, [4.1, 4.0]) for seed in range(10))])
    assert [t.met for t in targets_of(told, expected)] == [True, False, True, True, True, True]
    assert "(KL)" in targets_of(told, expected)[0].what
    assert "(TPE)" in targets_of(told, expected)[3].what
    assert for_good({"costs": [1.0, 2.0, 3.0, 4.0], "curve": [0.1, 0.9, 0.4, 0.3]}, 0.5) == 3.0
    assert for_good({"costs": [1.0, 2.0], "curve": [0.1, 0.9]}, 0.5) is None
    baselines = targets_of(arena_rows(many([4.1, 4.05, 4.0], [4.1, 4.1, 4.1])), expected)[1]
    assert (baselines.value, baselines.met) == (None, False)
    assert "ends where the uniform baselines are" in baselines.why
    slow = search_rows(many([4.1, 4.1, 4.1, 4.1, 4.08, 4.04], [4.1, 4.1, 4.1, 4.1, 4.1, 4.05]))
    assert [t.met for t in targets_of(slow, expected)] == 2 * [True, False, True]


def test_others_are_paired_with_ours_by_seed_and_arenas_of_a_task_count_once() -> None:
    runs = [made(name, kind, seed, [4.1, 4.0 + gap + 0.001 * seed * (name == "TPE")], arena=emulator, emulator=emulator)
            for seed in range(10) for emulator in ("boosted", "network")
            for name, kind, gap in (("qra_bo", "qra_bo", 0.0), ("TPE", "peer", 0.05))]
    rows = paired_rows(search_rows(runs))
    assert [(r["emulator"], r["budget"], r["seeds"]) for r in rows] == [
        ("boosted", "uniform:4,4", 10), ("network", "uniform:4,4", 10), ("all", "all", 10)]
    for row in rows:
        assert row["mean"] == pytest.approx(0.545)
        assert row["se"] == pytest.approx(0.01 * np.std(np.arange(10), ddof=1) / np.sqrt(10))
        assert row["low"] < row["mean"] < row["high"]
