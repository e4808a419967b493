"""Very many observations, and many that are pending."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qra_bo.searchers.observations import Observations, kept_indices
from qra_bo.searchers.structured import StructuredSearch, searcher
from qra_bo.trials import Trial, TrialState
from surrogates.structured import StructuredModel
from tests.searchers.landscape import baselines, evaluate, make_landscape


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(2, 40))
def test_kept_observations_are_the_best_and_a_spread_of_the_rest(values: list[float], most: int) -> None:
    losses = np.array(values)
    kept = kept_indices(losses, most)
    assert len(kept) == len(set(kept.tolist())) == min(len(losses), most)
    assert (np.diff(kept) > 0).all()
    if len(losses) > most >= 4:
        best = np.sort(losses)[:most - most // 2]
        np.testing.assert_array_equal(np.sort(losses[kept])[:len(best)], best)
        assert losses.max() in losses[kept]


def told(n: int) -> tuple[StructuredSearch, list[Trial]]:
    """A small search, and ``n`` evaluations of other random allocations."""
    landscape = make_landscape(0, n_units=6, ranks=(1, 2, 4, 8))
    search = StructuredSearch(landscape.problem, n_prior=0, draws=1)
    other = StructuredSearch(dataclasses.replace(landscape.problem, seed=5), n_prior=n, draws=1)
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


def test_scales_are_fitted_at_intervals_and_never_for_pending_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []
    fit = StructuredModel._fit
    monkeypatch.setattr(StructuredModel, "_fit", lambda self, warp: fits.append(len(self.y)) or fit(self, warp))
    monkeypatch.setattr(searcher, "MOST", 24)
    monkeypatch.setattr(searcher, "ALWAYS_FITTED", 12)
    search, evaluations = told(60)
    sizes = []
    for evaluation in evaluations:
        search.tell([evaluation])
        fits.clear()
        model = search._fitted()
        if fits:
            sizes.append(len(search._seen.arrays()[1]))
        assert model is None or len(model.y) <= 24
        assert model is None or float(model.y.min()) == min(float(e.loss) for e in evaluations
                                                            [:evaluations.index(evaluation) + 1] if e.loss is not None)
    few = [n for n in sizes if n <= 12]
    assert sorted(set(few)) == list(range(2, 13))  # after every one, while they are few
    assert len(sizes) - len(few) < len(search._seen.arrays()[1]) - 12
    fits.clear()
    asked = search.ask(4)
    assert len({p.allocation for p in asked}) == 4
    assert not fits  # the fourth knows of three that are pending
    assert all(search._problem.fits(p.allocation) for p in asked)
