"""Trainings of what is predicted for two lengths: which trial is next, and what its rows say."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.length import predicted, rates
from bench.length.plan import UNSEEN_SEEDS, uniform_choice
from bench.length.predicted import BEST_UNIFORM, FACTORS, GSM8K, LONG, PLAYS, SHORT, UNIFORM
from bench.length.trials import Key
from qra_bo.utils.errors import ConfigError

FINDS = {SHORT: uniform_choice(4, 2).allocation.to_json(), LONG: uniform_choice(4, 3).allocation.to_json()}
LOSSES = {UNIFORM: 3.8, SHORT: 3.75, LONG: 3.74}


@pytest.fixture(autouse=True)
def best_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The uniform choices' factor is a published one, or any other."""
    monkeypatch.setattr(predicted, "tuned_factor", lambda steps, bits, rank: 1.25)


def first(most: int) -> dict[Key, dict[str, Any]]:
    """Return the first trials, as ``load`` does."""
    trials = list(predicted.trials_of(PLAYS, "54MB", 240, FINDS, 1.25))[:most]
    return {t.key: {"loss": LOSSES[name] + i / 1e6} for i, (t, name) in enumerate(trials)}


def test_all_three_are_trained_on_a_seed_before_the_next_and_differences_are_paired() -> None:
    found = first(6)
    assert {key[3] for key in found} == set(UNSEEN_SEEDS[:2])
    uniform, short, long = predicted.rows_of(PLAYS, "54MB", 240, FINDS, found)
    assert [r["seeds"] for r in (uniform, short, long)] == [2, 2, 2]
    assert "over_uniform" not in uniform
    assert "over_short" not in short
    assert "over_short" not in uniform
    assert long["over_short"]["mean"] == pytest.approx(-0.01, abs=1e-5)
    assert long["over_uniform"]["mean"] == pytest.approx(-0.06, abs=1e-5)
    assert (uniform["factor"], long["factor"], long["rank"]) == (1.25, 1.0, 3)


def test_searched_finds_join_those_that_are_predicted_with_their_own_rate(tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def search(config: Any, folder: Path, effort: str, learned: str) -> dict[str, Any]:
        asked.append((config.search.length, config.final.steps, folder.name, effort, Path(learned).parent.name))
        return {**uniform_choice(4, len(asked) + 3).allocation.to_json(), "lr_scale": 0.5, "equivalents": 11.5,
                "trials": 14, "seconds": 1.0}

    monkeypatch.setattr(predicted, "found_by", search)
    finds = predicted.find_both(PLAYS, "54MB", "quick", tmp_path, ["data=plays"])
    assert asked == [("final", steps, str(steps), "quick", GSM8K) for steps in (24, 240)]
    names = list(predicted.FOUND["quick"])
    assert list(finds) == names
    assert finds[names[1]]["equivalents"] == 11.5
    trials = list(predicted.trials_of(PLAYS, "54MB", 240, {**FINDS, **finds}, 1.25))
    assert {name: t.lr_scale for t, name in trials} == {
        UNIFORM: 1.25, SHORT: 1.0, LONG: 1.0, **dict.fromkeys(names, 0.5)}
    losses = {t.key: {"loss": 3.7 if name == names[1] else 3.8} for t, name in trials}
    rows = {r["name"]: r for r in predicted.rows_of(PLAYS, "54MB", 240, {**FINDS, **finds}, losses)}
    assert rows[names[1]]["over_short"]["mean"] == pytest.approx(-0.1)
    assert "over_short" not in rows[names[0]]
    assert rows[LONG]["over_short"]["mean"] == 0.0


def test_a_seed_that_one_alone_has_counts_in_no_difference() -> None:
    assert "over_short" not in predicted.rows_of(PLAYS, "54MB", 240, FINDS, first(3))[2]
    assert predicted.rows_of(PLAYS, "54MB", 240, FINDS, first(8))[1]["over_uniform"]["seeds"] == 3
    assert predicted.rows_of(PLAYS, "54MB", 240, FINDS, first(7))[1]["over_uniform"]["seeds"] == 2


def test_the_rate_of_gsm8ks_uniform_choice_is_tuned_on_the_validation_split_before_anything_else() -> None:
    found: dict[Key, dict[str, Any]] = {}
    for loss, scale in zip((1.2, 1.0, 1.1), FACTORS, strict=True):
        trial, _ = predicted.wanted(GSM8K, "54MB", 240, FINDS, found) or pytest.fail("nothing is wanted")
        assert (trial.task, trial.split, trial.lr_scale) == (GSM8K, "validation", scale)
        assert predicted.rows_of(GSM8K, "54MB", 240, FINDS, found) == []
        found[trial.key] = {"loss": loss}
    trial, name = predicted.wanted(GSM8K, "54MB", 240, FINDS, found) or pytest.fail("nothing is wanted")
    assert (name, trial.split, trial.train_seed) == (UNIFORM, "test", UNSEEN_SEEDS[0])
    assert trial.lr_scale == 1.0
    found[trial.key] = {"loss": 1.05}
    trial, name = predicted.wanted(GSM8K, "54MB", 240, FINDS, found) or pytest.fail("nothing is wanted")
    assert (name, trial.lr_scale, trial.task) == (SHORT, 1.0, GSM8K)


def test_twice_the_largest_rate_is_tried_if_that_is_the_best() -> None:
    found: dict[Key, dict[str, Any]] = {}
    for loss, scale in zip((1.2, 1.1, 1.0, 1.3), (*FACTORS, 4.0), strict=True):
        trial, name = predicted.wanted(GSM8K, "54MB", 240, FINDS, found) or pytest.fail("nothing is wanted")
        assert (name, trial.split, trial.lr_scale) == (UNIFORM, "validation", scale)
        found[trial.key] = {"loss": loss}
    assert predicted.uniform_factor(GSM8K, "54MB", 240, found) == 2.0


def test_a_longer_training_has_fewer_seeds_and_needs_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = list(predicted.trials_of(PLAYS, "54MB", 720, FINDS, 1.25))
    assert {trial.steps for trial, _ in planned} == {720}
    assert {trial.train_seed for trial, _ in planned} == set(UNSEEN_SEEDS[:3])
    assert predicted.rows_of(PLAYS, "54MB", 720, FINDS, first(6)) == []  # losses after 240 steps count for nothing
    monkeypatch.setattr(predicted, "tuned_factor", lambda steps, bits, rank: None)
    with pytest.raises(ConfigError, match=r"54MB has no learning rate for 720 steps yet; first run .*length\.rates"):
        predicted.wanted(PLAYS, "54MB", 720, FINDS, {})


def test_every_uniform_choice_has_tuned_rates_planned() -> None:
    planned = [(steps, *choice) for steps, choices in rates.LENGTHS for choice in choices]
    assert all((predicted.LONGEST, *choice) in planned for choice in BEST_UNIFORM.values())


def test_the_published_rows_are_of_the_published_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert predicted.main(["--summary", "--results", str(tmp_path)]) == 0
    published = json.loads((predicted.RESULTS / "length_predicted.json").read_text())["rows"]
    assert json.loads((tmp_path / "length_predicted.json").read_text())["rows"] == published


def test_the_figure_has_the_differences_by_training_tokens() -> None:
    rows = predicted.drawn_rows(512)
    drawn = {(r["task"], r["name"], r["tokens"]): r["minus_best_uniform"] for r in rows}
    assert drawn[PLAYS, f"{SHORT}, 54MB, bf16", 240 * 512]["high"] < 0
    assert drawn[GSM8K, f"{UNIFORM}, 54MB, bf16", 240 * 512] is None
