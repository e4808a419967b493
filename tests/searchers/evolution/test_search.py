"""Stage 1 as a whole: generations, promotion, front, stopping."""

import dataclasses

import numpy as np
import pytest
import torch

from bench.optimum import optimum, true_losses
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.searchers.base import Searcher, SearchProblem
from qra_bo.searchers.evolution import selection
from qra_bo.searchers.evolution.searcher import Archive, EvolutionarySearch, RandomSearch
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.trials import Fidelity, Proposal
from surrogates.fidelity import FidelityModel
from tests.conformance.searcher import evaluate, make_problem, play, proposals_of


def test_a_generation_is_explored_low_and_its_best_promoted() -> None:
    problem, oracle = make_problem(8)
    search = EvolutionarySearch(problem, population=8, generations=2, promote=3)
    for _ in range(2):
        low = search.ask(100)
        assert len(low) == 8
        assert {p.fidelity for p in low} == {Fidelity.LOW}
        assert search.ask(1) == []  # the rest of the generation is awaited
        told = [evaluate(problem, oracle, p, i) for i, p in enumerate(low)]
        search.tell(told[:5])
        assert search.ask(1) == []
        search.tell(told[5:])
        high = search.ask(100)
        assert {p.fidelity for p in high} == {Fidelity.HIGH}
        assert len(high) == 3
        search.tell([evaluate(problem, oracle, p, 50 + i) for i, p in enumerate(high)])
        if not search.hypervolumes:
            best = sorted(told, key=lambda e: e.loss or 0.0)[:3]
            assert {p.allocation for p in high} == {e.allocation for e in best}
    assert search.ask(1) == []
    assert len(search.hypervolumes) == 2


def test_stragglers_do_not_hold_a_generation() -> None:
    problem, oracle = make_problem(8)
    search = EvolutionarySearch(problem, population=8, generations=3, promote=3)
    low = search.ask(100)
    told = [evaluate(problem, oracle, p, i) for i, p in enumerate(low)]
    search.tell(told[:6])  # a quarter is awaited
    high = search.ask(100)
    best = sorted(told[:6], key=lambda e: e.loss or 0.0)[:3]
    assert {p.allocation for p in high} == {e.allocation for e in best}
    search.tell(told[6:])
    search.tell([evaluate(problem, oracle, p, 50 + i) for i, p in enumerate(high)])
    asked = {(p.allocation, p.fidelity) for p in (*low, *high)}
    later = search.ask(100)
    assert later
    assert not asked & {(p.allocation, p.fidelity) for p in later}


def test_it_stops_when_the_hypervolume_stands_still() -> None:
    problem, oracle = make_problem(6)
    search = EvolutionarySearch(problem, population=4, generations=100, promote=1, tolerance=1e9)
    play(search, problem, oracle, 400)
    assert len(search.hypervolumes) == 4  # one, and three more that grew by less
    search = EvolutionarySearch(problem, population=4, generations=100, promote=1, tolerance=-1.0)
    rounds = play(search, problem, oracle, 60)
    assert len(proposals_of(rounds)) == 60
    volumes = np.array(search.hypervolumes)
    assert (np.diff(volumes) >= -1e-12).all()


def test_published_network_is_fitted_once_there_are_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, oracle = make_problem(6)
    fitted = []
    network = selection.FidelityModel

    def counted(features: torch.Tensor, target: torch.Tensor, seed: int) -> FidelityModel:
        fitted.append(len(target))
        return network(features, target, seed)

    monkeypatch.setattr(selection, "FidelityModel", counted)
    play(EvolutionarySearch(problem, population=6, generations=4, promote=5, tolerance=-1.0), problem, oracle, 44)
    assert fitted[0] == 10
    assert fitted == sorted(fitted)


def regret(searcher: Searcher, problem: SearchProblem, oracle: SyntheticOracle, budget: int) -> float:
    """True loss of the incumbent over the optimum's, in units of the median feasible row's."""
    archive = Archive(problem)
    rounds = play(searcher, problem, oracle, budget)
    archive.tell(e for _, told in rounds for e in told)
    rows, losses = archive.known(Fidelity.HIGH)
    truth = true_losses(oracle.landscape, rows[[losses.argmin()]])[0]
    best_loss = optimum(oracle.landscape, problem.costs, problem.budget_bytes).loss
    random = proposals_of(play(RandomSearch(dataclasses.replace(problem, seed=99)), problem, oracle, 30))
    drawn = np.stack([problem.space.encode(p.allocation) for p in random])
    middle = np.median(true_losses(oracle.landscape, drawn))
    return float((truth - best_loss) / (middle - best_loss))


def test_search_comes_near_the_planted_optimum() -> None:
    problem, oracle = make_problem(10, low_steps=None)
    assert regret(EvolutionarySearch(problem, population=12, generations=20), problem, oracle, 200) < 0.35


def test_the_archive_keeps_only_what_may_be_compared() -> None:
    problem, oracle = make_problem(4)
    archive = Archive(problem)
    values = problem.profile.quantization_sensitivity[:, :, None] + np.zeros(problem.costs.shape)
    row = solve_knapsack(values, problem.costs, problem.budget_bytes)
    proposal = Proposal(problem.space.decode(row), Fidelity.HIGH, "global")
    e = evaluate(problem, oracle, proposal, 0)
    archive.tell([dataclasses.replace(e, spec=dataclasses.replace(e.spec, split="test"))])
    assert not len(archive.known(Fidelity.HIGH)[1])
    assert archive.claim(row, Fidelity.LOW)
    assert archive.claim(row, Fidelity.HIGH)
    assert not archive.claim(row, Fidelity.LOW)
    assert archive.waiting
    archive.tell([e, dataclasses.replace(e, fidelity=Fidelity.LOW)])
    assert not archive.waiting
    assert archive.known(Fidelity.HIGH)[1].tolist() == [e.loss]
    assert len(archive.pairs()[0]) == 1
    assert len(archive.unpromoted()[0]) == 0
