"""Length study: plan, resume and summary, with the tiny model and with planted losses."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.length import table
from bench.length.__main__ import main
from bench.length.command import study_config
from bench.length.plan import (
    EFFECTS,
    LIMITS,
    SEARCH_SEED,
    UNSEEN_SEEDS,
    Block,
    Choice,
    make_plan,
    next_rate,
    settle,
    wanted,
)
from bench.length.plot import draw_table
from bench.length.study import work
from bench.length.summary import difference, predictors, publish, summarise
from bench.length.trials import NAME, Found, Key, PlannedTrial, append, load, to_event
from qra_bo.config import load_config
from qra_bo.memory.budget import resolve_budget
from qra_bo.space import uniform
from qra_bo.trials import TrialState

FIND = Choice("find of a normal search", uniform(4, "nf4", 1), "find", "mixed")
LARGE = Choice("uniform 3 bits, rank 8", uniform(4, "hqq3", 8), "uniform", "3 bits")
SMALL = Choice("uniform 3 bits, rank 4", uniform(4, "hqq3", 4), "uniform", "3 bits")
BLOCK = Block("plays", "54 MB stored", 3, 2, (FIND, LARGE, SMALL))


def loss_of(trial: PlannedTrial) -> float | None:
    """Planted loss: half the rate is best, the find wins by 0.1, rank 4 beats rank 8 and twice the rate diverges."""
    base = {1: 3.8, 8: 3.95, 4: 3.9}[trial.allocation.ranks[0]]
    if trial.lr_scale > 1:
        return None
    return base + (trial.lr_scale - 0.5) ** 2 + 0.01 * (trial.train_seed % 7)


def following(found: Found) -> tuple[PlannedTrial, str] | None:
    return wanted([BLOCK], found, ("plays",))


def answer(plan: Sequence[Block], most: int = 100) -> tuple[list[PlannedTrial], dict[Key, dict[str, Any]]]:
    """Trials in the order of the plan, and their events with planted losses."""
    order: list[PlannedTrial] = []
    found: dict[Key, dict[str, Any]] = {}
    while len(order) < most and (following := wanted(plan, found, ("plays",))) is not None:
        order.append(following[0])
        found[following[0].key] = {"loss": loss_of(following[0]), "curve": []}
    return order, found


def test_the_tightest_limit_comes_first_at_two_rates_and_effects_follow_at_rates_of_a_rule() -> None:
    first, same, second = make_plan()[:3]
    assert (first.steps, first.limit, first.seeds, len(first.choices)) == (240, "54 MB stored", 5, 2)
    assert replace(first, steps=24) == same
    order, _ = answer([replace(BLOCK, rates=2)])
    assert [t.lr_scale for t in order if t.split == "validation"][:4] == [0.5, 1.0, 0.5, 1.0]
    trial, name = wanted([second], {}, ("plays",)) or pytest.fail("the plan is empty")
    assert (second.steps, second.limit, second.seeds) == (240, EFFECTS, 0)
    assert (trial.steps, trial.train_seed, trial.split, trial.lr_scale) == (240, SEARCH_SEED, "validation", 1.0)
    assert name == "uniform 3 bits, rank 15"
    order, found = answer([Block("plays", EFFECTS, 3, 0, (replace(FIND, kind="curve", rate_class="rank up to 2"),
                                                         replace(SMALL, rate_class="rank up to 8")), False)])
    assert [t.lr_scale for t in order] == [0.7, 0.85]
    assert len(found) == 2


def test_every_compared_choice_fits_its_limit() -> None:
    config = study_config("plays", None)
    sizes = predictors(config)
    for block in make_plan():
        if block.limit in LIMITS:
            text, scope = LIMITS[block.limit]
            budget = resolve_budget(text, sizes[scope].memory, sizes[scope].space)
            assert all(sizes[scope](choice.allocation) <= budget for choice in block.choices)


def test_table_of_curves_has_48_distinct_allocations() -> None:
    order = table.choices()
    assert len({choice.allocation for choice in order}) == len(order) >= 48
    assert order == table.choices()
    beginning = {choice.name.partition(" ")[0] for choice in order[:12]}
    assert {"uniform", "mixed"} <= beginning


def test_table_of_curves_is_drawn_and_unfinished_ones_left_out(tmp_path: Path) -> None:
    chosen = table.choices()[:8]
    for i, choice in enumerate(chosen):
        for steps in table.LENGTHS[:1 if i == 7 else 2]:
            append(tmp_path / NAME, to_event(table.trial_of(choice, steps), choice.name, {
                "state": "ok", "loss": 3.8 + i / 100, "curve": [[steps, 3.8 + i / 100]]}, "s"))
    assert table.main(["--summary", "--out", str(tmp_path), "--results", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "length_table.json").read_text())["rows"]
    assert [r["name"] for r in rows] == [c.name for c in chosen]
    assert (rows[7]["short_loss"], rows[7]["loss"]) == (None, pytest.approx(3.87))
    assert (tmp_path / "length_table.png").stat().st_size > 0
    short, whole = draw_table(rows, {"short_loss": 24, "loss": 240}).axes
    assert sum(len(line.get_xdata()) for line in short.lines) == 7  # type: ignore[arg-type]
    assert sum(len(line.get_xdata()) for line in whole.lines) == 8  # type: ignore[arg-type]


@pytest.mark.parametrize(("tried", "following"), [
    ({}, 0.5), ({0.5: 3.0}, 1.0), ({0.5: 3.0, 1.0: 3.1}, 0.25), ({0.5: 3.1, 1.0: 3.0}, 2.0),
    ({0.5: float("inf"), 1.0: float("inf")}, 0.25), ({0.25: 3.2, 0.5: 3.0, 1.0: 3.1}, None)])
def test_third_rate_is_beside_the_better_one(tried: dict[float, float], following: float | None) -> None:
    assert next_rate(tried) == following


def test_rates_then_candidates_then_one_seed_after_another() -> None:
    order, found = answer([BLOCK])
    assert [(t.allocation.ranks[0], t.lr_scale) for t in order[:7]] == [
        (1, 0.5), (1, 1.0), (1, 0.25), (8, 0.5), (8, 1.0), (8, 0.25), (4, 0.5)]
    assert [(t.split, t.train_seed, t.allocation.ranks[0], t.lr_scale) for t in order[7:]] == [
        ("test", seed, rank, 0.5) for seed in UNSEEN_SEEDS[:2] for rank in (4, 1)]
    assert settle(BLOCK, found).best_uniform == SMALL


def test_blocks_share_trials() -> None:
    _, found = answer([BLOCK])
    assert wanted([Block("plays", "another limit", 3, 1, BLOCK.choices)], found, ("plays",)) is None


def test_text_without_data_is_left_out() -> None:
    block = Block("gsm8k", "54 MB stored", 3, 2, BLOCK.choices)
    assert wanted([block], {}, ("plays",)) is None
    assert wanted([block], {}, ("plays", "gsm8k"))


def test_incomplete_line_is_cut_off_and_failed_trial_retried(tmp_path: Path) -> None:
    path, (trial, *_) = tmp_path / NAME, answer([BLOCK])[0]
    event = to_event(trial, "x", {"state": "ok", "loss": 3.5}, "s")
    append(path, event)
    with path.open("a") as file:
        file.write('{"event": "tri')
    assert list(load(path)) == [trial.key]
    append(path, to_event(answer([BLOCK])[0][1], "x", {"state": TrialState.FAILED.value, "loss": None}, "s"))
    assert list(load(path)) == [trial.key]
    assert len(path.read_text().splitlines()) == 2


def test_unfinished_rows_are_null() -> None:
    config = load_config(["+model=tiny", "data=tiny"])
    summary = summarise([BLOCK], answer([BLOCK], 8)[1], config)
    find, best = summary["rows"]
    assert (find["mean"], find["minus_best_uniform"], best["mean"]) == (None, None, None)
    assert (find["learning_rate"], find["rate_is_inside"]) == (0.5 * config.adapter.lr, True)
    assert [loss is None for loss in best["test_losses"]] == [False, True]
    assert summarise([BLOCK], {}, config)["rows"][1]["average_bits"] is None


def test_summary_has_paired_difference_and_interval() -> None:
    config = load_config(["+model=tiny", "data=tiny"])
    summary = summarise([BLOCK], answer([BLOCK])[1], config)
    find, best = summary["rows"]
    assert find["minus_best_uniform"] == {"mean": pytest.approx(-0.1), "low": pytest.approx(-0.1),
                                          "high": pytest.approx(-0.1), "seeds": 2}
    assert best["name"] == SMALL.name
    assert (find["average_bits"], find["average_rank"]) == (4.0, 1.0)


def test_difference_needs_two_common_seeds() -> None:
    assert difference({1: 3.0, 2: 3.1}, {1: 3.2}) is None
    assert difference({1: 3.0, 2: 3.1, 3: 9.0}, {1: 3.2, 2: 3.5}) == {
        "mean": pytest.approx(-0.3), "low": pytest.approx(-0.3 - 12.7062 * 0.1), "seeds": 2,
        "high": pytest.approx(-0.3 + 12.7062 * 0.1)}


@pytest.mark.slow
def test_stopped_study_resumes_without_repeating_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(["+model=tiny", "data=tiny", "dtype=float32", "device=cpu", "quantizer.rounding=rtn",
                          "eval.sequences=8"])
    work(following, tmp_path / NAME, {"plays": config}, most=4)
    before = (tmp_path / NAME).read_bytes()
    work(following, tmp_path / NAME, {"plays": config})
    work(following, tmp_path / NAME, {"plays": config})
    after = (tmp_path / NAME).read_bytes()
    events = [json.loads(line) for line in after.splitlines()]
    assert after.startswith(before)
    assert sum(e["event"] == "session" for e in events) == 2
    assert sum(e["event"] == "trial" for e in events) == len(load(tmp_path / NAME)) == 11
    assert capsys.readouterr().out.count("nothing is missing") == 2
    publish(tmp_path, config, [BLOCK])
    assert (tmp_path / "length.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "length.json").read_text())["rows"][0]["minus_best_uniform"]["seeds"] == 2


def test_summary_of_nothing_is_written(tmp_path: Path) -> None:
    assert main(["--summary", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "length.json").read_text())["rows"]
    assert {row["mean"] for row in rows} == {None}
    assert not (tmp_path / "length.png").exists()
