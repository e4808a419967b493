"""Summaries of where emulated searches stop and of which ranking chooses their winner, by hand."""

import pytest

from bench.search.evidence import EFFORT, LEAST, Row, arena_rows, stop_of, stop_row, winner_row
from qra_bo.config import load_config


def search(chances: list[float | None], regrets: list[float], noise: float = 0.2, fails: bool = False) -> Row:
    return {"noise": noise, "steps": [
        {"chance": c, "rule": r, "model": r + 0.1, "measured": r - 0.1, "fails": fails}
        for c, r in zip(chances, regrets, strict=True)]}


def test_searches_are_those_of_the_quick_effort() -> None:
    effort = load_config(["effort=quick"]).effort
    assert (effort.max_full_trials, effort.stop) == (EFFORT, LEAST)


def test_search_stops_before_the_first_unlikely_proposal() -> None:
    run = search([None, 0.3, 0.05, 0.4], [1.0, 0.5, 0.4, 0.1])
    assert [stop_of(run, least) for least in (0.01, 0.1, 0.35)] == [4, 2, 1]


def test_going_on_counts_as_missed_only_above_the_noise() -> None:
    missed = search([None, 0.05, 0.3], [0.9, 0.8, 0.2])
    noisy = search([None, 0.05, 0.3], [0.9, 0.8, 0.8], noise=0.2)
    never = search([None, 0.5, 0.3], [0.9, 0.8, 0.1])
    row = stop_row([missed, noisy, never], 0.1)
    assert row["missed"] == pytest.approx(1 / 3)
    assert row["stops"] == [1, 1, 1, 2, 3]
    assert row["regret_at_stop"] == 0.9
    assert row["mean_gain"] == pytest.approx((0.7 + 0.1 + 0.0) / 3)


def test_stops_are_counted_in_every_arena() -> None:
    runs = [{**search(chances, [0.9, 0.8, 0.2]), "task": "plays", "emulator": "boosted", "budget": budget}
            for budget, chances in (("b", [None, 0.05, 0.3]), ("a", [None, 0.3, 0.3]), ("a", [None, 0.3, 0.01]))]
    first, second = arena_rows(runs)
    assert (first["budget"], first["searches"], first["stops"][2], first["missed"]) == ("a", 2, 2.5, 0.5)
    assert (second["budget"], second["searches"], second["stops"][2], second["missed"]) == ("b", 1, 1.0, 1.0)
    assert (first["what"], first["least"], first["noise"], first["proposals"]) == ("stop in an arena", LEAST, 0.2, 3)


def test_winners_are_compared_after_as_many_proposals() -> None:
    row = winner_row([search([None, 0.5], [0.4, 0.2], fails=True), search([None], [0.6])], 2)
    assert (row["searches"], row["check_failed"]) == (2, 0.5)
    assert row["regret_rule"] == pytest.approx(0.4)
    assert row["regret_model"] == pytest.approx(0.5)
    assert row["regret_measured"] == pytest.approx(0.3)
