"""The default method with learned exchange rates as its prior mean."""

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qra_bo.searchers.base import Forecasting, SearchProblem
from qra_bo.searchers.rates.model import Rates, load_rates, of_training
from qra_bo.searchers.structured.searcher import StructuredSearch
from qra_bo.space import CostTable, FloatArray, IntArray
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.space.lagrangian import Region, solve_relaxed
from surrogates.structured import StructuredModel
from tests.conformance.searcher import SearcherSuite, evaluate, make_problem, play, proposals_of, unlearned

NAME = "smollm2_135m"


class TestStructuredWithRates(SearcherSuite):
    make = staticmethod(functools.partial(StructuredSearch, rates=NAME, draws=2))
    limit = 6


@pytest.mark.parametrize("steps", [None, 240])
def test_first_proposal_is_the_optimum_of_the_rates_of_the_length_that_is_minimised(
        steps: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def noted(rates: Rates, problem: SearchProblem, length: int) -> Rates:
        lengths.append(length)
        return of_training(rates, problem, length)

    monkeypatch.setattr("qra_bo.searchers.structured.searcher.of_training", noted)
    problem = replace(make_problem()[0], objective_steps=steps)
    first = StructuredSearch(problem, rates=NAME).ask(1)[0].allocation
    assert lengths == [steps or problem.high_steps]  # a small space has one optimum at both lengths
    table = of_training(load_rates(NAME), problem, lengths[0]).table(problem)
    best = solve_knapsack(table, problem.costs, problem.budget_bytes)
    n, row = problem.space.n_units, problem.space.encode(first)
    at = np.arange(n)
    assert table[at, row[:n], row[n:]].sum() - table[at, best[:n], best[n:]].sum() < 1e-4


def test_second_proposal_depends_on_the_first_loss() -> None:
    problem, oracle = make_problem()
    known = [e for _, told in play(unlearned(problem, 3), problem, oracle, 3) for e in told]
    found = set()
    for gain in (-0.5, 0.5):
        searcher = StructuredSearch(problem, rates=NAME)
        searcher.tell(known)
        first = evaluate(problem, oracle, searcher.ask(1)[0], 9)
        searcher.tell([replace(first, result=replace(first.result, loss=first.loss + gain))])
        found.add(searcher.ask(1)[0].allocation)
    assert len(found) == 2


def test_chance_of_a_gain_is_a_probability_while_candidates_are_left() -> None:
    problem, oracle = make_problem(n_units=1)
    searcher = unlearned(problem, 2, draws=1)
    assert isinstance(searcher, Forecasting)
    chances = []
    while proposals_of(play(searcher, problem, oracle, 1, batches=(1,))):
        chances.append(searcher.chance_of_gain)
    assert chances[:2] == [None, None]
    assert all(0 <= chance <= 1 for chance in chances[2:])
    assert len(set(chances[2:])) > 1
    assert searcher.chance_of_gain is None  # everything that fits was tried


def test_chance_of_a_gain_is_over_what_was_evaluated_and_not_over_a_pending_proposal(
        monkeypatch: pytest.MonkeyPatch) -> None:
    problem, oracle = make_problem()
    known = [e for _, told in play(unlearned(problem, 3), problem, oracle, 3) for e in told]
    models: list[tuple[StructuredModel, float]] = []

    def noted(model: StructuredModel, best_f: float, maximize: bool) -> Any:
        assert not maximize
        models.append((model, best_f))
        return lambda rows: -model.latent(rows[:, 0])[0]

    monkeypatch.setattr("qra_bo.searchers.structured.searcher.LogExpectedImprovement", noted)
    searcher = unlearned(problem, 0)
    searcher.tell([replace(e, result=replace(e.result, loss=4.0 + 0.02 * i)) for i, e in enumerate(known)])
    searcher.ask(1)
    proposal, chance = searcher.ask(1)[0], searcher.chance_of_gain
    model, best_f = models[1]
    evaluated = float(model.latent(model.rows[:len(known)])[0].min())
    assert best_f < evaluated  # the pending proposal is believed to be better
    mean, sd = model.latent(torch.from_numpy(problem.space.encode(proposal.allocation))[None])
    noise = math.sqrt(2) * model.scales["noise"]
    over_evaluated, over_pending = (float(torch.special.ndtr((f - noise - mean) / sd)) for f in (evaluated, best_f))
    assert chance == pytest.approx(over_evaluated)
    assert over_evaluated > 1.05 * over_pending


def test_trust_region_is_around_an_evaluated_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, oracle = make_problem()
    known = [e for _, told in play(unlearned(problem, 3), problem, oracle, 3) for e in told]
    centres = []

    def noted(values: FloatArray, costs: CostTable, budget: int, region: Region | None) -> IntArray:
        if region is not None:
            centres.append(problem.space.decode(region.centre))
        return solve_relaxed(values, costs, budget, region)

    monkeypatch.setattr("qra_bo.searchers.structured.searcher.LogExpectedImprovement",
                        lambda model, best_f, maximize: lambda rows: -model.latent(rows[:, 0])[0])
    searcher = unlearned(problem, 0)
    searcher.tell([replace(e, result=replace(e.result, loss=4.0 + 0.02 * i)) for i, e in enumerate(known)])
    searcher.ask(1)
    fitted = searcher._fitted()
    model = fitted.condition_on_pending(torch.from_numpy(searcher._seen.pending).double())
    assert int(model.latent(model.rows)[0].argmin()) == len(known)  # the pending proposal has the best posterior mean
    monkeypatch.setattr("qra_bo.searchers.structured.searcher.solve_relaxed", noted)
    searcher.ask(1)
    assert centres
    assert set(centres) == {known[0].allocation}
