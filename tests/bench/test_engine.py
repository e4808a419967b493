"""The engine benchmark: its rows and targets."""

import pytest

from bench import engine
from qra_bo.searchers.base import SearchProblem


@pytest.fixture(scope="module")
def problem() -> SearchProblem:
    return engine.make_problem("tiny", "layer")


def test_repair_is_timed(problem: SearchProblem) -> None:
    row = engine.repair_row(problem, 1)
    assert row["edits"] > 0
    assert row["cpu_seconds"] > 0


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


def test_targets_need_their_sizes() -> None:
    small, middle, large = engine.targets_of([row("proposal: global", 32, 3.0, observations=60),
                                              row("proposal: local", 80, 1.0, observations=60)])
    assert (small.met, middle.met) == (False, True)
    assert large.value is None
    assert "560 units" in large.why
