"""Health cards: each status where the journal's numbers call for it, and no card without its evidence."""

from typing import Any

import pytest

from qra_bo.study.health import FAIL, PASS, UNKNOWN, WARN, Card
from qra_bo.study.lines import study_of
from qra_bo.study.results import checks
from tests.report.fixtures import make_events

Events = list[dict[str, Any]]


def changed(kind: str, events: Events | None = None, **fields: Any) -> Events:
    return [{**e, **fields} if e["event"] == kind else e for e in (make_events() if events is None else events)]


def without(*kinds: str) -> Events:
    return [e for e in make_events() if e["event"] not in kinds]


def only(name: str, events: Events) -> Card:
    return next(c for c in checks(study_of(events)) if c.name == name)


def test_a_run_that_has_begun_measures_nothing() -> None:
    assert {c.status for c in checks(study_of(make_events()[:2]))} == {UNKNOWN}


@pytest.mark.parametrize(("good", "covered", "status"), [
    (.9, .8667, PASS), (.9, 11 / 15, PASS), (.9, 10 / 15, WARN), (.6, .9, WARN), (.63, .9, PASS), (0.0, .9, FAIL),
    (None, .9, FAIL)])
def test_surrogate_is_compared_with_chance(good: float | None, covered: float, status: str) -> None:
    """The better half are 8 of 15: 1.645 / sqrt(7) = 0.62; of 15 intervals of 90 % 11 or more hold in 95 % of cases."""
    events = changed("surrogate_check", spearman_good=good, coverage_90=covered)
    assert only("surrogate", events).status == status


@pytest.mark.parametrize(("measured", "status"), [
    (1_000, PASS), (1_004, PASS), (1_006, WARN), (953, PASS), (950, WARN), (1_101, FAIL)])
def test_memory_is_held_to_what_is_promised(measured: int, status: str) -> None:
    events = changed("measured", changed("header", budget_bytes=1_100), predicted_bytes=1_000, measured_bytes=measured)
    assert only("memory", events).status == status


def test_memory_counts_an_allocation_once_however_often_it_was_measured() -> None:
    events = make_events()
    own = next(e for e in events if e["event"] == "measured")
    trial = next(e for e in events if e["event"] == "trial")
    other = {**own, "allocation": {"formats": trial["formats"], "ranks": trial["ranks"]}, "fits": False}
    assert "; 1 better allocations" in only("memory", [events[0], other, other, own, *events[1:]]).finding
    assert only("memory", [events[0], {**own, "fits": False}, *events[1:]]).status == PASS  # its last measurement fits


def test_memory_falls_back_on_the_winner_s_own_trial() -> None:
    c = only("memory", without("measured"))
    assert c.status == PASS
    assert "measured (prediction +1" in c.finding
    assert only("memory", changed("measured", measured_bytes=None)).status == UNKNOWN
    assert only("memory", changed("measured", measured_bytes=None, fits=False)).status == FAIL


def test_a_final_loss_that_still_falls_is_a_warning() -> None:
    curve = [[40, 4.0], [80, 3.9], [100, 3.889]]
    assert only("length", changed("final", curve=curve, steps=100, kept_step=100)).status == WARN
    curve[-1][1] = 3.891
    assert only("length", changed("final", curve=curve, steps=100, kept_step=100)).status == PASS
