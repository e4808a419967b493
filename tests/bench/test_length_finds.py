"""Trainings of what is found for two lengths: which trial is next, and what its rows say."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.length import finds as program
from bench.length import rates
from bench.length.finds import BEST_UNIFORM, FACTORS, FOUND, GSM8K, PLAYS, RESULT, UNIFORM
from bench.length.plan import UNSEEN_SEEDS, uniform_choice
from bench.length.trials import Key
from qra_bo.utils.errors import ConfigError

SHORT, LONG = FOUND["instant"]
FINDS = {SHORT: uniform_choice(4, 2).allocation.to_json(), LONG: uniform_choice(4, 3).allocation.to_json()}
LOSSES = {UNIFORM: 3.8, SHORT: 3.75, LONG: 3.74}


@pytest.fixture(autouse=True)
def best_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The uniform choices' factor is a published one, or any other."""
    monkeypatch.setattr(program, "tuned_factor", lambda steps, bits, rank: 1.25)


def first(most: int) -> dict[Key, dict[str, Any]]:
    """Return the first trials, as ``load`` does."""
    trials = list(program.trials_of(PLAYS, "54MB", 240, FINDS, 1.25))[:most]
    return {t.key: {"loss": LOSSES[name] + i / 1e6} for i, (t, name) in enumerate(trials)}


def test_all_three_are_trained_on_a_seed_before_the_next_and_differences_are_paired() -> None:
    found = first(6)
    assert {key[3] for key in found} == set(UNSEEN_SEEDS[:2])
    uniform, short, long = program.rows_of(PLAYS, "54MB", 240, FINDS, found)
    assert [r["seeds"] for r in (uniform, short, long)] == [2, 2, 2]
    assert "over_uniform" not in uniform
    assert "over_short" not in short
    assert "over_short" not in uniform
    assert long["over_short"]["mean"] == pytest.approx(-0.01, abs=1e-5)
    assert long["over_uniform"]["mean"] == pytest.approx(-0.06, abs=1e-5)
    assert (uniform["factor"], long["factor"], long["rank"]) == (1.25, 1.0, 3)


def test_searches_find_for_both_lengths_and_their_finds_are_trained_at_their_own_rate(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def search(config: Any, folder: Path, effort: str, learned: str) -> dict[str, Any]:
        asked.append((config.search.length, config.final.steps, folder.name, effort, Path(learned).parent.name))
        return {**uniform_choice(4, len(asked) + 3).allocation.to_json(), "lr_scale": 0.5, "equivalents": 11.5,
                "trials": 14, "seconds": 1.0}

    monkeypatch.setattr(program, "found_by", search)
    finds = program.find_both(PLAYS, "54MB", "quick", tmp_path, ["data=plays"])
    assert asked == [("final", steps, str(steps), "quick", GSM8K) for steps in (24, 240)]
    short, long = FOUND["quick"]
    assert list(finds) == [short, long]
    trials = list(program.trials_of(PLAYS, "54MB", 240, finds, 1.25))
    assert {name: t.lr_scale for t, name in trials} == {UNIFORM: 1.25, short: 0.5, long: 0.5}
    losses = {t.key: {"loss": 3.7 if name == long else 3.8} for t, name in trials}
    rows = {r["name"]: r for r in program.rows_of(PLAYS, "54MB", 240, finds, losses)}
    assert rows[long]["over_short"]["mean"] == pytest.approx(-0.1)
    assert "over_short" not in rows[short]
    assert (rows[long]["equivalents"], rows[long]["trials"]) == (11.5, 14)
    assert "equivalents" not in rows[UNIFORM]


def test_a_seed_that_one_alone_has_counts_in_no_difference() -> None:
    assert "over_short" not in program.rows_of(PLAYS, "54MB", 240, FINDS, first(3))[2]
    assert program.rows_of(PLAYS, "54MB", 240, FINDS, first(8))[1]["over_uniform"]["seeds"] == 3
    assert program.rows_of(PLAYS, "54MB", 240, FINDS, first(7))[1]["over_uniform"]["seeds"] == 2


def test_the_rate_of_gsm8ks_uniform_choice_is_tuned_on_the_validation_split_before_anything_else() -> None:
    found: dict[Key, dict[str, Any]] = {}
    for loss, scale in zip((1.2, 1.0, 1.1), FACTORS, strict=True):
        trial, _ = program.wanted(GSM8K, "54MB", 240, FINDS, found) or pytest.fail("nothing is wanted")
        assert (trial.task, trial.split, trial.lr_scale) == (GSM8K, "validation", scale)
        assert program.rows_of(GSM8K, "54MB", 240, FINDS, found) == []
        found[trial.key] = {"loss": loss}
    trial, name = program.wanted(GSM8K, "54MB", 240, FINDS, found) or pytest.fail("nothing is wanted")
    assert (name, trial.split, trial.train_seed) == (UNIFORM, "test", UNSEEN_SEEDS[0])
    assert trial.lr_scale == 1.0
    found[trial.key] = {"loss": 1.05}
    trial, name = program.wanted(GSM8K, "54MB", 240, FINDS, found) or pytest.fail("nothing is wanted")
    assert (name, trial.lr_scale, trial.task) == (SHORT, 1.0, GSM8K)


def test_twice_the_largest_rate_is_tried_if_that_is_the_best() -> None:
    found: dict[Key, dict[str, Any]] = {}
    for loss, scale in zip((1.2, 1.1, 1.0, 1.3), (*FACTORS, 4.0), strict=True):
        trial, name = program.wanted(GSM8K, "54MB", 240, FINDS, found) or pytest.fail("nothing is wanted")
        assert (name, trial.split, trial.lr_scale) == (UNIFORM, "validation", scale)
        found[trial.key] = {"loss": loss}
    assert program.uniform_factor(GSM8K, "54MB", 240, found) == 2.0


def test_a_longer_training_has_fewer_seeds_and_needs_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = list(program.trials_of(PLAYS, "54MB", 720, FINDS, 1.25))
    assert {trial.steps for trial, _ in planned} == {720}
    assert {trial.train_seed for trial, _ in planned} == set(UNSEEN_SEEDS[:3])
    assert program.rows_of(PLAYS, "54MB", 720, FINDS, first(6)) == []  # losses after 240 steps count for nothing
    monkeypatch.setattr(program, "tuned_factor", lambda steps, bits, rank: None)
    with pytest.raises(ConfigError, match=r"54MB has no learning rate for 720 steps yet; first run .*length\.rates"):
        program.wanted(PLAYS, "54MB", 720, FINDS, {})


def test_every_uniform_choice_has_tuned_rates_planned() -> None:
    planned = [(steps, *choice) for steps, choices in rates.LENGTHS for choice in choices]
    assert all((program.LONGEST, *choice) in planned for choice in BEST_UNIFORM.values())


@pytest.mark.parametrize("effort", list(RESULT))
def test_the_published_rows_are_of_the_published_trials(effort: str, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert program.main(["--summary", "--effort", effort, "--results", str(tmp_path)]) == 0
    name = f"{RESULT[effort]}.json"
    published = json.loads((program.RESULTS / name).read_text())["rows"]
    assert published
    assert json.loads((tmp_path / name).read_text())["rows"] == published


def test_the_figure_has_the_differences_by_training_tokens() -> None:
    rows = program.drawn_rows(512)
    drawn = {(r["task"], r["name"], r["tokens"]): r["minus_best_uniform"] for r in rows}
    assert drawn[PLAYS, f"{SHORT}, 54MB, bf16", 240 * 512]["high"] < 0
    assert drawn[GSM8K, f"{UNIFORM}, 54MB, bf16", 240 * 512] is None
