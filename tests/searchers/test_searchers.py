"""The model-based searchers: the conformance suite, and whether they find what is planted."""

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch

from bench.peers.trust_region import LossTrustRegion
from qra_bo.searchers.base import SelfChecking
from qra_bo.searchers.structured.searcher import LEAST_CHECKED, StructuredSearch
from qra_bo.searchers.trust_region import TrustRegionBO
from qra_bo.space import uniform
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.trials import Fidelity, Proposal
from tests.conformance.searcher import SearcherSuite, unlearned
from tests.searchers.landscape import Landscape, baselines, curve, evaluate, make_landscape, run_search
from tests.spaces import distance


class TestStructuredSuite(SearcherSuite):
    make = staticmethod(functools.partial(unlearned, n_first=2, draws=2))
    limit = 12


class TestTrustRegionSuite(SearcherSuite):
    make = staticmethod(lambda problem: TrustRegionBO(problem, tolerance=0.0))
    limit = 9


def small(seed: int, **changes: object) -> Landscape:
    return make_landscape(seed, n_units=8, ranks=(1, 2, 4, 8, 16), search_seed=seed, **changes)  # type: ignore[arg-type]


def random_search(landscape: Landscape, n: int) -> float:
    """Noise-free loss of the best of ``n`` random allocations on the edge of the budget."""
    problem, rng = landscape.problem, np.random.default_rng(0)
    rows = [solve_knapsack(rng.standard_normal(problem.costs.shape), problem.costs, problem.budget_bytes)
            for _ in range(n)]
    return float(landscape.truth(np.array(rows)).min())


def predicted(searcher: StructuredSearch, row: np.ndarray) -> float:
    """Loss of a row (``2 L``) by posterior mean."""
    model = searcher._fitted()
    return float(model.warp.moments(*model.latent(torch.from_numpy(row[None])))[0])


def test_structured_beats_uniform_random_and_the_published_method() -> None:
    n = 6
    gains = []
    for seed in range(2):
        landscape = small(seed)
        start = curve(landscape, baselines(landscape))[-1]
        ours = curve(landscape, run_search(landscape, StructuredSearch(landscape.problem), n))[-1]
        theirs = curve(landscape, run_search(landscape, TrustRegionBO(landscape.problem), n))[-1]
        gains.append([start - ours, start - theirs, start - random_search(landscape, n)])
    ours, theirs, drawn = np.mean(gains, axis=0)
    assert ours > 0.01
    assert ours > 2 * max(theirs, drawn)


def test_trust_region_proposes_within_its_radius_and_stops() -> None:
    landscape = small(0, noise=0.0)
    searcher = LossTrustRegion(landscape.problem, n_initial=4, radius=1, largest_radius=1, tolerance=5e-3)
    known = [e for e in baselines(landscape) if landscape.problem.space.contains(e.allocation)]
    assert len(known) >= 4  # no random proposals come first
    searcher.tell(known)
    for number in range(40):
        proposals = searcher.ask(1)
        if not proposals:
            break
        best = min(known, key=lambda e: e.loss or np.inf)
        row, centre = (landscape.problem.space.encode(a) for a in (proposals[0].allocation, best.allocation))
        assert distance(row[None, :], centre)[0] == 1
        known.append(evaluate(landscape, proposals[0], number))
        searcher.tell(known[-1:])
    assert 0 < number < 39


def test_published_region_grows_where_utility_rises_and_loss_does_not_fall() -> None:
    landscape = small(0, noise=0.0)
    space = landscape.problem.space
    low, middle, high = (evaluate(landscape, Proposal(uniform(8, fmt, rank), Fidelity.HIGH, stage), number)
                         for number, (fmt, rank, stage) in enumerate((
                             ("hqq3", 1, "baseline"), ("nf4", 1, "trust_region"), ("nf4", 4, "baseline"))))
    assert landscape.problem.fits(high.allocation)
    assert space.contains(middle.allocation)
    told = [dataclasses.replace(e, result=dataclasses.replace(e.result, loss=loss))
            for e, loss in ((low, 5.0), (high, 4.0), (middle, 4.01))]
    for method, radius in ((TrustRegionBO, 4), (LossTrustRegion, 2)):
        searcher = method(landscape.problem, radius=2, largest_radius=4)
        searcher.tell(told[:2])
        searcher.tell(told[2:])
        assert searcher.region.radius == radius


def test_other_training_seeds_and_splits_are_left_out() -> None:
    landscape = small(1)
    history = baselines(landscape)
    plain, other = StructuredSearch(landscape.problem), StructuredSearch(landscape.problem)
    plain.tell(history)
    other.tell(history)
    tested = [dataclasses.replace(e, spec=dataclasses.replace(e.spec, split="test")) for e in history]
    unknown = [dataclasses.replace(e, spec=dataclasses.replace(e.spec, train_seed=7), allocation=uniform(
        8, "nf4", 3)) for e in history[:1]]
    other.tell(tested + unknown)
    row = landscape.problem.space.encode(history[-1].allocation)
    assert predicted(other, row) == pytest.approx(predicted(plain, row), rel=1e-7)


def test_baselines_between_ladder_ranks_inform_the_model() -> None:
    landscape = small(0)
    searcher = StructuredSearch(landscape.problem)
    told = [dataclasses.replace(e, allocation=uniform(8, e.allocation.formats[0], 3)) for e in baselines(landscape)]
    searcher.tell(told[:1] + told[-1:])
    assert math.isfinite(predicted(searcher, np.zeros(16, dtype=np.int64)))


def test_surrogate_check_predicts_every_observation() -> None:
    landscape = small(0)
    searcher = StructuredSearch(landscape.problem)
    assert isinstance(searcher, SelfChecking)
    assert searcher.surrogate_check() is None
    told = run_search(landscape, searcher, LEAST_CHECKED - len(baselines(landscape)) - 1)
    assert len(told) == LEAST_CHECKED - 1
    assert searcher.surrogate_check() is None
    for proposal in searcher.ask(2):
        told.append(evaluate(landscape, proposal, len(told)))
    searcher.tell(told[-2:])
    check = searcher.surrogate_check()
    assert check["observed"] == [e.loss for e in told]
    assert {len(check[k]) for k in ("observed", "predicted", "sd")} == {check["n"]} == {len(told)}
    assert 0.0 <= check["coverage_50"] <= check["coverage_90"] <= 1.0
    assert json.loads(json.dumps(check)) == check
