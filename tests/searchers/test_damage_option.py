"""Surrogate, first designs and knapsacks take the damage that they are told to take."""

from dataclasses import replace

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.methods import make_searcher
from qra_bo.searchers.structured.features import build_components
from qra_bo.searchers.structured.prior_designs import prior_tables
from qra_bo.sensitivity.damages import believed_damage
from surrogates.structured import Component
from tests.conformance.searcher import make_problem


def noisy(problem: SearchProblem) -> SearchProblem:
    """With a profile whose three damages differ."""
    p, rng = problem.profile, np.random.default_rng(3)
    kl = p.quantization_sensitivity * rng.lognormal(0.0, 0.5, p.quantization_sensitivity.shape)
    return replace(problem, profile=replace(p, quantization_kl=kl, quantization_se=0.05 * np.sqrt(p.quantization_sensitivity)))


def test_damage_is_what_it_is_told_to_be_in_surrogate_and_first_designs() -> None:
    problem = noisy(make_problem(6)[0])
    measured = {"rise": problem.profile.quantization_sensitivity, "divergence": problem.profile.quantization_kl,
                "believed": believed_damage(problem.profile)}
    assert len({m.tobytes() for m in measured.values()}) == 3
    for name, damage in measured.items():
        exact = replace(problem, profile=replace(problem.profile, quantization_sensitivity=damage, quantization_se=None))
        for got, want in ((build_components(problem, quantization_sensitivity=name), build_components(exact)),
                          (prior_tables(problem, 8, name), prior_tables(exact, 8))):
            arrays = [(a.features.numpy(), b.features.numpy()) if isinstance(a, Component) else (a, b)
                      for a, b in zip(got, want, strict=True)]
            for a, b in arrays:
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
        of_name = make_searcher("structured", problem, {"quantization_sensitivity": name}, 40.0).ask(8)
        assert of_name == make_searcher("structured", exact, {}, 40.0).ask(8)
        if name == "believed":
            assert of_name == make_searcher("structured", problem, {}, 40.0).ask(8)
    first = {name: make_searcher("sequential", problem, {"quantization_sensitivity": name}, 40.0).ask(4) for name in measured}
    assert first["rise"] == make_searcher("sequential", problem, {}, 40.0).ask(4)
    assert first["rise"] != first["divergence"]
