"""The engine benchmark: proposals and targets."""

import pytest

from bench import engine
from qra_bo.searchers.base import SearchProblem


@pytest.fixture(scope="module")
def problem() -> SearchProblem:
    return engine.make_problem("tiny", "layer")


def test_proposals_are_timed_before_any_loss_and_from_the_posterior(problem: SearchProblem) -> None:
    rows = engine.proposal_rows(problem, (0, 4), 1)
    assert [r["observations"] for r in rows] == [0, 4]
    assert all(r["cpu_seconds"] > 0 for r in rows)
