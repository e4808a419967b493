"""Surrogate, first designs and knapsacks use the chosen measure of quantisation sensitivity."""

from dataclasses import replace

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured import StructuredSearch, build_components
from qra_bo.searchers.structured.features import prior_tables
from qra_bo.sensitivity.importance import shrunk_sensitivity
from surrogates.structured import Component
from tests.conformance.searcher import make_problem


def noisy(problem: SearchProblem) -> SearchProblem:
    """Return the problem with a profile whose three measures differ."""
    p, rng = problem.profile, np.random.default_rng(3)
    kl = p.quantization_sensitivity * rng.lognormal(0.0, 0.5, p.quantization_sensitivity.shape)
    se = 0.05 * np.sqrt(p.quantization_sensitivity)
    return replace(problem, profile=replace(p, quantization_kl=kl, quantization_se=se))


def test_surrogate_and_first_designs_use_the_chosen_measure() -> None:
    problem = noisy(make_problem(6)[0])
    measured = {"rise": problem.profile.quantization_sensitivity, "divergence": problem.profile.quantization_kl,
                "believed": shrunk_sensitivity(problem.profile)}
    assert len({m.tobytes() for m in measured.values()}) == 3
    for name, values in measured.items():
        exact = replace(problem, profile=replace(problem.profile, quantization_sensitivity=values,
                                                 quantization_se=None))
        for got, want in ((build_components(problem, quantization_sensitivity=name), build_components(exact)),
                          (prior_tables(problem, 8, name), prior_tables(exact, 8, "believed"))):
            arrays = [(a.features.numpy(), b.features.numpy()) if isinstance(a, Component) else (a, b)
                      for a, b in zip(got, want, strict=True)]
            for a, b in arrays:
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
        of_name = StructuredSearch(problem, n_prior=8, quantization_sensitivity=name).ask(8)
        assert of_name == StructuredSearch(exact, n_prior=8).ask(8)
        if name == "believed":
            assert of_name == StructuredSearch(problem, n_prior=8).ask(8)
