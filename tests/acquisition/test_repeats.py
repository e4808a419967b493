"""When to repeat rather than try: knowledge gradients against closed forms and simulation; rounds of a search."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from qra_bo.acquisition.observations import Observations
from qra_bo.acquisition.repeats import best_round, new_value
from qra_bo.acquisition.structured_search import REPEAT, StructuredOptions, StructuredSearch
from qra_bo.records import Evaluation, EvaluationRequest, Fidelity, Measurement, Proposal, TrialState
from qra_bo.searcher import SearchProblem
from qra_bo.space import Allocation
from tests.conformance.searcher import make_problem


def test_the_value_of_something_new_is_the_expected_improvement_of_its_posterior_mean() -> None:
    mean, sd, noise, best = 0.3, 0.8, 0.6, 0.1
    change = sd**2 / np.hypot(sd, noise)
    z = np.linspace(-8, 8, 200_001)
    expected = np.trapezoid(np.clip(best - (mean + change * z), 0, None) * norm.pdf(z), z)
    assert new_value(np.array([mean]), np.array([sd]), noise, best)[0] == pytest.approx(expected, rel=1e-6)
    assert new_value(np.array([best]), np.array([sd]), 0.0, best)[0] == pytest.approx(sd / np.sqrt(2 * np.pi))


def test_a_round_of_two_has_a_closed_form() -> None:
    # Independent contenders: a difference d ~ N(0, 2 s^2) is seen with noise 2 e^2, the level taken out.
    s, e, gap = 0.5, 0.3, 0.2
    normals = np.random.default_rng(0).standard_normal((400_000, 2))
    found = best_round(np.array([0.0, gap]), s**2 * np.eye(2), e, normals)
    assert found is not None
    change = 2 * s**2 / np.sqrt(2 * s**2 + 2 * e**2)
    expected = change * (norm.pdf(gap / change) - gap / change * norm.cdf(-gap / change))
    assert found.size == 2
    assert found.value == pytest.approx(expected / 2, rel=0.02)


def test_certain_or_lonely_contenders_are_not_repeated() -> None:
    normals = np.random.default_rng(0).standard_normal((1000, 3))
    assert best_round(np.zeros(1), np.eye(1), 0.1, normals[:, :1]) is None
    certain = best_round(np.array([0.0, 1.0, 2.0]), 1e-6 * np.eye(3), 0.1, normals)
    assert certain is not None
    assert certain.value == pytest.approx(0.0, abs=1e-12)
    # What moves together is not told apart by its level.
    together = best_round(np.array([0.0, 0.1, 0.2]), np.ones((3, 3)) + 1e-9 * np.eye(3), 0.1, normals)
    assert together is not None
    assert together.value == pytest.approx(0.0, abs=1e-6)


def told(problem: SearchProblem, allocation: Allocation, loss: float, seed: int, number: int = 0) -> Evaluation:
    request = EvaluationRequest(allocation, problem.high_steps, problem.high_steps, seed)
    return Evaluation(number, allocation, problem.space.bits(allocation), "global", Fidelity.HIGH, request, 0,
                      Measurement(TrialState.OK, loss, None, (), problem.high_steps, 1, 1, None, 0.0), 0)


def test_a_level_costs_what_is_shared_a_part_of_its_repeats() -> None:
    problem, _ = make_problem(2)
    formats = problem.space.formats[0].name
    a, b, c = (Allocation((formats,) * 2, (r, 1)) for r in (1, 2, 4))
    seen = Observations(problem)
    seen.tell([told(problem, x, loss, 1) for x, loss in ((a, 4.0), (b, 4.2), (c, 4.4))])
    seen.tell([told(problem, a, 5.1, 2), told(problem, b, 5.1, 2), told(problem, c, 9.0, 3)])
    rows, losses, counts = seen.arrays()
    # Seed 2 is 1.0 higher, two allocations share it: half a loss each. Seed 3 tells nothing: its level is unknown.
    assert seen.seeds == 3
    np.testing.assert_allclose(counts, [1.5, 1.5, 1.0])
    np.testing.assert_allclose(losses, [(4.0 + 0.5 * 4.1) / 1.5, (4.2 + 0.5 * 4.1) / 1.5, 4.4])
    assert len(rows) == 3


def rounds(problem: SearchProblem, noise: float, contenders: int) -> tuple[list[Proposal], StructuredSearch]:
    """A search whose losses hardly differ but for their noise."""
    searcher = StructuredSearch(problem, StructuredOptions(contenders=contenders))
    rng, asked = np.random.default_rng(0), []
    for number in range(40):
        proposal, = searcher.ask(1)
        asked.append(proposal)
        loss = 4.0 + 1e-4 * sum(proposal.allocation.ranks) + noise * float(rng.standard_normal())
        found = replace(told(problem, proposal.allocation, loss, proposal.repeat, number), stage=proposal.stage)
        searcher.tell([found])
    return asked, searcher


def test_where_noise_decides_the_best_are_repeated_together_on_new_seeds() -> None:
    problem, _ = make_problem()
    asked, searcher = rounds(problem, 0.05, 4)
    repeated = [p for p in asked if p.repeat]
    assert {p.stage for p in repeated} == {REPEAT}
    by_seed = [[p.allocation for p in repeated if p.repeat == k] for k in range(1, problem.repeats + 1)]
    started = [len(r) for r in by_seed if r]
    assert started
    assert all(2 <= n <= 4 for n in started[:-1])
    assert all(len(set(r)) == len(r) for r in by_seed)
    first = {p.allocation for p in asked if not p.repeat}
    assert all(set(r) <= first for r in by_seed)
    assert searcher.recommend()[0] in first
    assert not [p for p in rounds(problem, 0.05, 0)[0] if p.repeat]
    assert not [p for p in rounds(replace(problem, repeats=0), 0.05, 4)[0] if p.repeat]
