"""The engine benchmark: its rows, exponents and targets."""

import numpy as np
import pytest

from bench import engine
from qra_bo.searchers.base import SearchProblem


@pytest.fixture(scope="module")
def problem() -> SearchProblem:
    return engine.make_problem("tiny", "layer")


def test_ways_to_repair_agree(problem: SearchProblem) -> None:
    rows = engine.repair_rows(problem, 1, direct=True)
    assert [r["same"] for r in rows] == [True] * 3
    assert rows[0]["edits"] > 0


def test_proposals_are_timed_before_any_loss_and_from_the_posterior(problem: SearchProblem) -> None:
    rows = engine.proposal_rows(problem, (4,), 1)
    assert [(r["what"], r["observations"]) for r in rows] == [
        ("proposal: first", 0), ("proposal: global", 4)]


def test_observations_are_distinct_and_fit(problem: SearchProblem) -> None:
    told = engine.observations(problem, 5)
    assert len({e.allocation for e in told}) == 5
    assert all(problem.fits(e.allocation) for e in told)


def row(what: str, units: int, seconds: float, **more: object) -> engine.Row:
    return {"what": what, "units": units, "seconds": 9.0, "cpu_seconds": seconds, **more}


def test_growth_is_the_exponent_of_a_power() -> None:
    rows = [row("a", u, 1e-3 * u**1.5) for u in (10, 20, 80)]
    assert engine.growth(rows, "a") == pytest.approx(1.5)
    assert engine.growth(rows[:1], "a") is None
    assert np.isclose(engine.growth([*rows, row("b", 10, 3.0)], "a") or 0.0, 1.5)


def test_targets_need_equal_results_and_their_sizes() -> None:
    rows = [row("repair: heap", 224, 1e-3, same=True), row("repair: vectorised", 224, 1e-2, same=True),
            row("repair: direct transcription", 224, 2.0, same=True), row("proposal: global", 32, 3.0, observations=60),
            row("proposal: local", 80, 1.0, observations=60)]
    direct, vectorised, small, middle, large = engine.targets_of(rows)
    assert (direct.value, direct.met) == (pytest.approx(2000.0), True)
    assert (vectorised.value, vectorised.met) == (pytest.approx(10.0), True)
    assert (small.met, middle.met) == (False, True)
    assert large.value is None
    assert "560 units" in large.why
    rows[2]["same"] = False
    assert not engine.targets_of(rows)[0].met
