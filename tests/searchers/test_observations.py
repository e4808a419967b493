"""Observations that arrive one by one, and many that are pending."""

import dataclasses

import numpy as np
import pytest

from qra_bo.searchers.observations import Observations
from qra_bo.searchers.structured.searcher import StructuredSearch
from qra_bo.trials import Trial, TrialState
from surrogates.structured import StructuredModel
from tests.conformance.searcher import unlearned
from tests.searchers.landscape import baselines, evaluate, make_landscape


def told(n: int) -> tuple[StructuredSearch, list[Trial]]:
    """A small search, and ``n`` evaluations of other random allocations."""
    landscape = make_landscape(0, n_units=6, ranks=(1, 2, 4, 8))
    search = unlearned(landscape.problem, 0, draws=1)
    other = unlearned(dataclasses.replace(landscape.problem, seed=5), n, draws=1)
    return search, [*baselines(landscape), *(evaluate(landscape, p, i) for i, p in enumerate(other.ask(n)))]


def test_trials_one_by_one_pool_as_all_at_once() -> None:
    search, evaluations = told(12)
    failed = dataclasses.replace(evaluations[5].result, state=TrialState.DIVERGED, loss=None, loss_se=None)
    evaluations[5] = dataclasses.replace(evaluations[5], result=failed)
    evaluations = [*evaluations, evaluations[2]]
    slowly, at_once = Observations(search._problem), Observations(search._problem)
    at_once.tell(evaluations)
    for evaluation in evaluations:
        slowly.tell([evaluation])
        slowly.arrays()
    for one, other in zip(slowly.arrays(), at_once.arrays(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_scales_are_not_fitted_for_pending_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []
    fit = StructuredModel._fit
    monkeypatch.setattr(StructuredModel, "_fit", lambda self, warp: fits.append(len(self.y)) or fit(self, warp))
    search, evaluations = told(12)
    search.tell(evaluations)
    assert search._fitted() is not None
    fits.clear()
    asked = search.ask(4)  # the fourth knows of three that are pending
    assert len({p.allocation for p in asked}) == 4
    assert not fits
    assert all(search._problem.fits(p.allocation) for p in asked)
