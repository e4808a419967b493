"""Exchange rates are learned from studies with planted slopes, and from a finished run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.learn_rates import main
from bench.rates import LEAST_LOSSES, Study, learn, save_rates, study_of
from qra_bo.api import search
from qra_bo.searchers.evolution.searcher import RandomSearch
from qra_bo.searchers.rates.model import Rates, load_rates
from qra_bo.space import FloatArray
from tests.conformance.searcher import make_problem, play

PLANTED = np.array([0.2, 0.02, 0.005])
TRIAL = 24 * 512


def planted(level: float, seed: int, slopes: FloatArray = PLANTED, n: int = 60, noise: float = 0.0) -> Study:
    rng = np.random.default_rng(seed)
    found = rng.uniform(0.0, [2.0, 5.0, 4.0], (n, 3)) * [1, 1, -1]
    return Study(found, level + found @ slopes + noise * rng.standard_normal(n), np.ones(n), TRIAL)


def learned(*studies: Study) -> Rates:
    return learn({f"study {i}": study for i, study in enumerate(studies)})


def test_planted_slopes_are_found_whatever_the_levels() -> None:
    found = learned(replace(planted(1.0, 0), lr_scale=0.5), replace(planted(4.0, 1), lr_scale=2.0))
    assert found.slopes == pytest.approx(PLANTED, rel=0.03)
    assert found.error < 2e-3
    assert (found.tokens, found.sources, found.lr_scale) == (TRIAL, ("study 0", "study 1"), 1.0)
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_slopes_are_never_negative() -> None:
    found = learned(planted(1.0, 2, np.array([0.2, 0.0, -0.01])))
    assert found.slopes.min() >= 0
    assert found.slopes[2] == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_term_that_never_differed_stays_unknown_and_its_file_is_read(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    study = planted(1.0, seed, PLANTED * [1, 1, 0], n=14, noise=0.005)
    ranks = np.full(14, -4.0) + rng.choice([-8.9e-16, 0.0, 8.9e-16], 14)  # one rank: sums that differ in rounding
    found = learned(replace(study, terms=np.column_stack([study.terms[:, :2], ranks])))
    assert found.slopes[2] == pytest.approx(0.0, abs=1e-6)
    assert found.slopes[0] == pytest.approx(PLANTED[0], rel=0.15)
    assert 1.0 < found.covariance[2, 2] < 1e6
    save_rates(found, tmp_path / "rates.json")
    assert load_rates(str(tmp_path / "rates.json")).covariance == pytest.approx(found.covariance)


def test_slopes_that_differ_by_study_are_uncertain() -> None:
    alike = learned(planted(1.0, 3), planted(1.0, 4))
    apart = learned(planted(1.0, 3), planted(1.0, 4, 2 * PLANTED))
    ratio = apart.covariance.diagonal() / alike.covariance.diagonal()
    assert ratio.min() > 1
    assert ratio[0] > 100
    assert apart.error > 10 * alike.error


def test_study_needs_enough_losses() -> None:
    problem, oracle = make_problem()
    told = [e for _, told in play(RandomSearch(problem), problem, oracle, LEAST_LOSSES) for e in told]
    assert study_of(problem, told[:-1]) is None
    found = study_of(problem, told, 2.0)
    assert (found.terms.shape, found.tokens, found.lr_scale) == ((LEAST_LOSSES, 3), problem.trial_tokens, 2.0)


def test_rates_are_learned_from_a_finished_run(tmp_path: Path) -> None:
    run = search(["+model=tiny", "data=tiny", "oracle=synthetic", "budget=uniform:4,4", "display=none",
                  "confirm.seeds=0", "effort=quick", f"out={tmp_path / 'first'}", "effort.max_full_trials=14",
                  "effort.stop=null", "adapter.lr=0.004", "calibrate.lr_scales=[1.0]"])
    path = tmp_path / "rates.json"
    main([str(run.folder), "--out", str(path)])
    found = load_rates(str(path))
    assert found.lr_scale == 2.0  # of the trainer's 0.002, which another run takes
    assert found.sources == (str(run.folder),)
    with pytest.raises(SystemExit, match="need each other"):
        main([str(run.folder)])
