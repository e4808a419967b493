"""Exchange rates of bits and ranks: planted slopes, closed forms, other lengths of training, files, and a run's use."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from bench.rates import save_rates
from qra_bo.api import search
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.rates.model import (
    DEVIATIONS,
    EXPONENTS,
    LONGEST,
    Change,
    Rates,
    at_length,
    change,
    change_of_difference,
    load_rates,
    of_training,
    rows_terms,
    terms,
)
from qra_bo.space import Allocation, uniform
from qra_bo.utils.errors import ConfigError, JournalError
from tests.conformance.searcher import make_problem

PLANTED = np.array([0.2, 0.02, 0.005])
TRIAL = 24 * 512
RATES = Rates(PLANTED, np.diag([1e-4, 1e-5, 1e-7]), 0.01, TRIAL, ("a", "b"), 1.5)


def test_rates_know_nothing_of_the_rise_of_the_loss() -> None:
    problem, _ = make_problem()
    kl = problem.profile.quantization_kl
    level = np.maximum.accumulate(kl[:, ::-1], axis=1)[:, ::-1]  # falling along the ladder
    noisy = replace(problem, profile=replace(problem.profile, quantization_sensitivity=kl[::-1] + 1.0))
    assert terms(noisy)[:, :, 0, 0] == pytest.approx(level)
    assert terms(noisy) == pytest.approx(terms(problem))


def test_doubling_every_rank_is_worth_its_slope() -> None:
    problem, _ = make_problem()
    rates = replace(RATES, covariance=np.diag([0.0, 0.0, 4e-6]), error=0.001)
    name = problem.space.formats[1].name
    two, three, four = (np.array(Observations(problem).position(uniform(5, name, r))) for r in (2, 3, 4))
    mean, sd = rates.difference(problem, four, two)
    assert mean == pytest.approx(-0.005)
    assert sd == pytest.approx(np.hypot(2e-3, 0.001))
    assert rates.difference(problem, three, two)[0] == pytest.approx(-0.005 * np.log2(1.5))  # off the ladder
    assert rates.difference(problem, two, two) == (0.0, 0.0)


def test_slopes_follow_power_laws_up_to_the_longest_ratio() -> None:
    assert at_length(RATES, TRIAL).slopes.tolist() == PLANTED.tolist()
    assert at_length(RATES, TRIAL).covariance.tolist() == RATES.covariance.tolist()
    for ratio in (5, 10):
        assert at_length(RATES, ratio * TRIAL).slopes == pytest.approx(PLANTED * ratio ** EXPONENTS)
    longest = round(TRIAL * LONGEST)
    assert at_length(RATES, 10 * longest).slopes == pytest.approx(at_length(RATES, longest).slopes)


def test_uncertainty_is_that_of_slopes_and_exponents() -> None:
    found, factors = at_length(RATES, 10 * TRIAL), 10.0**EXPONENTS
    expected = RATES.covariance.diagonal() * factors**2 + (PLANTED * factors * DEVIATIONS * math.log(10)) ** 2
    assert found.covariance.diagonal() == pytest.approx(expected)


def test_change_is_the_difference_of_both_tables() -> None:
    problem, _ = make_problem()
    found = change(RATES, problem, 24, 240)
    tables = [at_length(RATES, ratio * TRIAL).table(problem) for ratio in (1, 10)]
    rng, n = np.random.default_rng(0), problem.space.n_units
    for _ in range(5):
        row = np.array([*rng.integers(0, 4, n), *rng.integers(0, 4, n)])
        before, after = (table[np.arange(n), row[:n], row[n:]].sum() for table in tables)
        assert found.of(problem.space.decode(row)) == pytest.approx(after - before)


def test_lengths_are_ratios_to_the_problems_own_trials() -> None:
    """Steps of a GPU have 64 times the tokens: ten of its trials are ten times as long, not the longest there is."""
    problem, _ = make_problem()
    gpu = replace(problem, step_tokens=64 * problem.step_tokens)
    trial = of_training(RATES, gpu, gpu.high_steps)
    assert trial.slopes == pytest.approx(PLANTED * LONGEST ** EXPONENTS)
    assert of_training(RATES, gpu, 10 * gpu.high_steps).slopes == pytest.approx(trial.slopes * 10 ** EXPONENTS)


def test_change_of_a_difference_has_the_uncertainty_of_slopes_and_exponents() -> None:
    problem, _ = make_problem()
    n = problem.space.n_units
    rows = np.zeros(2 * n), np.array([*[1.0] * n, *[2.0] * n])
    mean, sd = change_of_difference(RATES, problem, *rows, 24, 240)
    whole = change(RATES, problem, 24, 240)
    assert mean == pytest.approx(whole.of(problem.space.decode(rows[0].astype(int)))
                                 - whole.of(problem.space.decode(rows[1].astype(int))))
    apart, grown = np.subtract(*rows_terms(problem, np.stack(rows))), 10.0 ** EXPONENTS - 1
    variance = (apart * grown) @ RATES.covariance @ (apart * grown) \
        + ((apart * PLANTED * 10.0 ** EXPONENTS * DEVIATIONS * math.log(10)) ** 2).sum()
    assert sd == pytest.approx(math.sqrt(variance))
    assert change_of_difference(RATES, problem, *rows, 24, 24) == (0.0, 0.0)
    beyond = change_of_difference(RATES, problem, *rows, 192, 1920)  # rates end at the longest ratio, and so does this
    assert beyond == change_of_difference(RATES, problem, *rows, 192, 240)


def test_change_holds_off_the_ladder_of_ranks_and_as_json() -> None:
    found = Change(("a", "b"), np.array([[0.1, 0.2], [0.3, 0.5]]), np.array([-0.01, -0.02]))
    codec = TypeAdapter(Change)
    for change_ in (found, codec.validate_json(codec.dump_json(found))):
        assert change_.of(Allocation(("b", "a"), (3, 8))) == pytest.approx(0.5 - 0.01 * math.log2(3) - 0.02 * 3)


def test_rates_survive_their_file_and_malformed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    save_rates(RATES, path)
    found, text = load_rates(str(path)), path.read_text()
    assert found.slopes == pytest.approx(PLANTED)
    assert replace(found, slopes=PLANTED, covariance=RATES.covariance) == RATES
    for changed in ("{", text.replace('"schema_version": 5', '"schema_version": 9')):
        path.write_text(changed)
        with pytest.raises(ConfigError, match="holds no exchange rates"):
            load_rates(str(path))
    for bad in (replace(RATES, slopes=-PLANTED), replace(RATES, covariance=-np.eye(3)), replace(RATES, error=-0.1),
                replace(RATES, covariance=np.eye(2)), replace(RATES, tokens=0), replace(RATES, lr_scale=-1.0)):
        save_rates(bad, path)
        with pytest.raises(ConfigError, match="holds no exchange rates"):
            load_rates(str(path))
    with pytest.raises(ConfigError, match="can't be read"):
        load_rates(str(tmp_path / "absent.json"))


def test_rates_of_a_file_are_used_by_a_run(tmp_path: Path) -> None:
    common = ["+model=tiny", "data=tiny", "oracle=synthetic", "budget=uniform:4,4", "display=none", "confirm.seeds=0",
              "effort=quick"]
    path = tmp_path / "rates.json"
    save_rates(replace(RATES, sources=("mine",)), path)
    same = [*common, f"out={tmp_path / 'second'}", "effort.max_full_trials=2", f"surrogate.rates={path}"]
    taught = search(same)
    held = path.read_bytes()
    save_rates(RATES, path)
    with pytest.raises(JournalError, match=r"surrogate\.rates has changed.*Restore it"):
        search(same)
    path.write_bytes(held)
    assert search(same).best == taught.best
    with pytest.raises(ConfigError, match=r"surrogate\.rates must name a file"):
        search([*common, f"out={tmp_path / 'third'}", f"surrogate.rates={tmp_path / 'absent.json'}"])
