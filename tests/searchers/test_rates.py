"""Exchange rates of bits and ranks: planted slopes, closed forms, and the file that holds them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured.rates import LEAST_LOSSES, Rates, Study, learn, row_of, rows_terms, study_of, terms
from qra_bo.searchers.structured.transfer import Prior, load_prior, save_prior
from qra_bo.space import Allocation, FloatArray, uniform
from qra_bo.trials import Fidelity, Proposal
from qra_bo.utils.errors import ConfigError
from tests.conformance.searcher import evaluate, make_problem

PLANTED = np.array([0.2, 0.02, 0.005])


def planted(level: float, seed: int, slopes: FloatArray = PLANTED, n: int = 60, noise: float = 0.0) -> Study:
    rng = np.random.default_rng(seed)
    found = rng.uniform(0.0, [2.0, 5.0, 4.0], (n, 3)) * [1, 1, -1]
    return Study(found, level + found @ slopes + noise * rng.standard_normal(n), np.ones(n), 24)


def test_planted_slopes_are_found_whatever_the_levels() -> None:
    found = learn([planted(1.0, 0), planted(4.0, 1)])
    assert found.slopes == pytest.approx(PLANTED, rel=0.03)
    assert found.error < 2e-3
    assert (found.steps, found.studies) == (24, 2)
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_rates_know_nothing_of_the_rise_of_the_loss() -> None:
    problem, _ = make_problem()
    kl = problem.profile.quantization_kl
    level = np.maximum.accumulate(kl[:, ::-1], axis=1)[:, ::-1]  # falling along the ladder
    noisy = replace(problem, profile=replace(problem.profile, quantization_sensitivity=kl[::-1] + 1.0))
    assert terms(noisy)[:, :, 0, 0] == pytest.approx(level)
    assert terms(noisy) == pytest.approx(terms(problem))


def test_slopes_are_never_negative() -> None:
    found = learn([planted(1.0, 2, np.array([0.2, 0.0, -0.01]))])
    assert found.slopes.min() >= 0
    assert found.slopes[2] == 0


@pytest.mark.parametrize("seed", range(8))
def test_a_term_that_never_differed_stays_unknown_and_its_file_is_read(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    study = planted(1.0, seed, PLANTED * [1, 1, 0], n=14, noise=0.005)
    ranks = np.full(14, -4.0) + rng.choice([-8.9e-16, 0.0, 8.9e-16], 14)  # one rank: sums that differ in rounding
    found = learn([replace(study, terms=np.column_stack([study.terms[:, :2], ranks]))])
    assert found.slopes[2] == pytest.approx(0.0, abs=1e-6)
    assert found.slopes[0] == pytest.approx(PLANTED[0], rel=0.15)
    assert 1.0 < found.covariance[2, 2] < 1e6
    save_prior(Prior(found, {}, 1.0, ("a",)), tmp_path / "prior.json")
    assert load_prior(str(tmp_path / "prior.json")).rates.covariance == pytest.approx(found.covariance)


def test_slopes_that_differ_by_study_are_uncertain() -> None:
    alike = learn([planted(1.0, 3), planted(1.0, 4)])
    apart = learn([planted(1.0, 3), planted(1.0, 4, 2 * PLANTED)])
    ratio = apart.covariance.diagonal() / alike.covariance.diagonal()
    assert ratio.min() > 1
    assert ratio[0] > 100
    assert apart.error > 10 * alike.error


def test_table_sums_to_the_terms_of_a_row() -> None:
    problem, _ = make_problem()
    rates, table, n = Rates(PLANTED, np.eye(3), 0.0, 24, 1), terms(problem) @ PLANTED, problem.space.n_units
    row = np.array([0, 1, 2, 3, 1, 0, 1, 2, 3, 0])
    summed = sum(table[u, row[u], row[n + u]] for u in range(n))
    assert rows_terms(problem, row[None].astype(float))[0] @ PLANTED == pytest.approx(summed)
    assert rates.table(problem) == pytest.approx(table)


def test_doubling_every_rank_is_worth_its_slope() -> None:
    problem, _ = make_problem()
    rates = Rates(PLANTED, np.diag([0.0, 0.0, 4e-6]), 0.001, 24, 1)
    name = problem.space.formats[1].name
    two, three, four = (np.array(row_of(problem, uniform(5, name, r))) for r in (2, 3, 4))
    mean, sd = rates.difference(problem, four, two)
    assert mean == pytest.approx(-0.005)
    assert sd == pytest.approx(np.hypot(2e-3, 0.001))
    assert rates.difference(problem, three, two)[0] == pytest.approx(-0.005 * np.log2(1.5))  # off the ladder
    assert rates.difference(problem, two, two) == (0.0, 0.0)
    assert row_of(problem, uniform(5, name, 64)) is None


def test_study_needs_enough_losses() -> None:
    problem, oracle = make_problem()
    few = [evaluate(problem, oracle, Proposal(a, Fidelity.HIGH, "global"), i)
           for i, a in enumerate(_random(problem, LEAST_LOSSES))]
    assert study_of(problem, few[:-1]) is None
    found = study_of(problem, few)
    assert found is not None
    assert found.terms.shape == (LEAST_LOSSES, 3)


def _random(problem: SearchProblem, n: int) -> list[Allocation]:
    rng, (n_units, n_formats, n_ranks) = np.random.default_rng(5), problem.costs.shape
    rows = np.hstack([rng.integers(0, n_formats, (n, n_units)), rng.integers(0, n_ranks, (n, n_units))])
    return [problem.space.decode(row) for row in rows]


def test_malformed_rates_are_refused(tmp_path: Path) -> None:
    rates, path = Rates(PLANTED, 1e-6 * np.eye(3), 0.01, 24, 2), tmp_path / "prior.json"
    save_prior(Prior(rates, {}, 1.5, ("a", "b")), path)
    found = load_prior(str(path))
    assert found.rates.slopes == pytest.approx(PLANTED)
    assert (found.rates.error, found.rates.steps, found.lr_scale, found.sources) == (0.01, 24, 1.5, ("a", "b"))
    for bad in (replace(rates, slopes=-PLANTED), replace(rates, covariance=-np.eye(3)), replace(rates, error=-0.1),
                replace(rates, covariance=np.eye(2)), replace(rates, steps=0)):
        save_prior(Prior(bad, {}, 1.5, ()), path)
        with pytest.raises(ConfigError, match="holds no prior"):
            load_prior(str(path))
