"""Models of training length: planted laws, what is hidden stays hidden, and rows that say nothing of too few."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.length import model as program
from bench.length.curves import LOOKS, PROFILE, SHORT, STEPS, Curves, of_best, of_rates, of_trials
from bench.length.exponents import exponents
from bench.length.extrapolation import (
    carried_rates,
    changed_rates,
    last_value,
    power_law,
    rates_after,
    ridge,
    shrunk_changed_rates,
)
from bench.length.gaussian import latent_kronecker, multi_fidelity
from bench.length.model import (
    IN_TURN,
    LEAST,
    LIBRARY,
    MODELS,
    difference_error,
    intervals,
    predict,
    prediction_rows,
    regret,
    rounds,
)
from bench.length.plan import SEARCH_SEED, uniform_choice
from bench.length.trials import PlannedTrial, append, to_event, trial_of
from bench.report import RESULTS
from qra_bo.searchers.structured.lengths import DEVIATIONS, EXPONENTS
from qra_bo.searchers.structured.rates import NAMES, Rates
from qra_bo.sensitivity.importance import measured_sensitivity
from qra_bo.sensitivity.io import load_profile
from qra_bo.space import Allocation, FloatArray, uniform

COLUMNS = (*LOOKS, STEPS)
FIRST, SLOPE = np.array([0.3, 0.05, 0.01]), np.array([-0.05, -0.01, 0.004])
"""Exchange rates at the first step, and their change when steps grow by the factor e."""


BIT_TERMS = np.array([0.4, 1.5, 0.0])
ELSEWHERE = Rates(FIRST, 1e-6 * np.eye(3), 0.01, COLUMNS[0], 1)


def planted(n: int = 40, noise: float = 0.0, slope: FloatArray = SLOPE, seed: int = 0) -> Curves:
    """Curves whose exchange rates change linearly in the logarithm of the steps, over a level that falls."""
    random = np.random.default_rng(seed)
    terms = np.column_stack([random.uniform(0.1, 0.6, n), random.uniform(1, 3, n), -random.uniform(0, 4.5, n)])
    growth = np.log(np.array(COLUMNS) / COLUMNS[0])
    losses = 3.5 - 0.05 * growth + terms @ (FIRST[:, None] + slope[:, None] * growth) + noise * random.normal(
        size=(n, len(COLUMNS)))
    return Curves("planted", COLUMNS, losses, terms, np.ones(n), np.arange(n), np.arange(n) * 1e6, BIT_TERMS,
                  ELSEWHERE)


def half_hidden(curves: Curves) -> np.ndarray:
    return np.asarray(np.arange(len(curves.losses)) % 2 == 0)


def error(model: Any, curves: Curves, seen: int) -> float:
    hidden = half_hidden(curves)
    return difference_error((predict(curves, seen, model, [hidden]) - curves.losses[:, -1])[hidden])


def test_ridge_is_least_squares_with_levels_and_prior_rows() -> None:
    random = np.random.default_rng(1)
    x, y, deviation = random.normal(size=(20, 3)), random.normal(size=20), random.uniform(0.5, 2, 20)
    prior, group = np.array([0.3, 1.0, 5.0]), np.arange(20) % 2
    levels = np.eye(2)[group]
    design = np.vstack([np.hstack([x, levels]) / deviation[:, None], np.hstack([np.diag(1 / prior), np.zeros((3, 2))])])
    expected = np.linalg.lstsq(design, np.concatenate([y / deviation, np.zeros(3)]), rcond=None)[0]
    fitted = ridge(x, y, deviation, prior, group)
    np.testing.assert_allclose(fitted.coefficients, expected[:3], rtol=1e-9)
    scale = ((y - x @ expected[:3] - levels @ expected[3:]) ** 2 / deviation**2).sum() / (20 - 3 - 2)
    np.testing.assert_allclose(fitted.covariance, max(1, scale) * np.linalg.inv(design.T @ design)[:3, :3], rtol=1e-9)


@pytest.mark.parametrize("seen", [0, 1])
@pytest.mark.parametrize("model", [changed_rates, shrunk_changed_rates])
def test_planted_change_of_rates_is_recovered(model: Any, seen: int) -> None:
    curves = planted()
    assert error(last_value, curves, seen) > 0.015
    assert error(model, curves, seen) < 0.002


@pytest.mark.parametrize("seen", [0, 1])
def test_rates_are_carried_by_exponents_of_the_known_curves(seen: int) -> None:
    curves = planted()
    for columns, exponent, share in ((COLUMNS, np.array([-0.3, -0.3, 0.4]), 0.2), ((3, 9, 15, 24), EXPONENTS, 1e-9)):
        slopes = FIRST * (np.array(columns)[:, None] / ELSEWHERE.steps) ** exponent
        law = replace(curves, steps=columns, losses=curves.terms @ slopes.T)
        assert error(carried_rates, law, seen) < share * error(last_value, law, seen)


def test_change_is_learned_from_columns_that_all_rows_show() -> None:
    curves = planted()
    few = np.arange(len(curves.losses)) > 0  # of one whole curve nothing is left but the level
    shares = []
    for seen in (0, 1):
        errors = [difference_error((predict(curves, seen, model, [few]) - curves.losses[:, -1])[few])
                  for model in (changed_rates, last_value)]
        shares.append(errors[0] / errors[1])
    assert shares[0] == pytest.approx(1.0)
    assert shares[1] < 0.25


def test_rates_after_steps_are_those_planted_within_their_errors() -> None:
    groups = [planted(60, 0.004, seed=1), replace(planted(60, 0.004, seed=2))]
    groups[1].losses[:] += 0.3  # each group has its own level
    for column, step in enumerate(COLUMNS):
        fitted = rates_after(groups, column)
        apart = fitted.coefficients[:3] - (FIRST + SLOPE * np.log(step / COLUMNS[0]))
        assert (np.abs(apart) < 4 * fitted.errors[:3]).all()
        assert (fitted.errors[:3] < [0.05, 0.01, 0.005]).all()


def test_one_bit_costs_what_its_terms_are_worth() -> None:
    *_, last = program.rates_rows("planted", [planted(200)])
    worth = FIRST + SLOPE * np.log(10)
    assert last[program.BIT] == pytest.approx(BIT_TERMS @ worth, rel=0.01)
    fitted = rates_after([planted(200)], 3)
    assert last[f"{program.BIT}_se"] == pytest.approx(np.sqrt(BIT_TERMS @ fitted.covariance[:3, :3] @ BIT_TERMS))


def test_learning_rate_has_a_quadratic_of_its_own() -> None:
    curves = planted()
    rates = np.array([0.5, 1.0, 2.0])[np.arange(40) % 3]
    log_rate = np.log2(rates)[:, None]
    losses = curves.losses + 0.01 * np.log(np.array(COLUMNS) / COLUMNS[0]) * (log_rate**2 + 0.5 * log_rate)
    assert error(changed_rates, replace(curves, losses=losses, rates=rates), 0) < 0.003
    assert error(changed_rates, replace(curves, losses=losses), 0) > 0.01


def test_last_value_is_exact_where_nothing_changes() -> None:
    curves = planted(slope=np.zeros(3))
    for model in (last_value, changed_rates, shrunk_changed_rates):
        assert error(model, curves, 0) == pytest.approx(0.0, abs=1e-9)


def test_noisy_early_losses_are_shrunk() -> None:
    curves = planted(n=60, noise=0.0, slope=np.zeros(3))
    curves.losses[:, 0] += np.random.default_rng(5).normal(0, 0.02, 60)
    assert error(shrunk_changed_rates, curves, 0) < 0.5 * error(changed_rates, curves, 0)


def test_power_law_with_one_exponent_is_recovered() -> None:
    random = np.random.default_rng(2)
    floor, size = random.uniform(3.4, 3.6, 30), random.uniform(0.5, 1.5, 30)
    losses = floor[:, None] + size[:, None] * np.array(COLUMNS, dtype=float) ** -0.6
    curves = replace(planted(30), losses=losses)
    assert error(power_law, curves, 1) < 1e-4 < 0.01 < error(last_value, curves, 1)
    np.testing.assert_array_equal(power_law(curves, 0), last_value(curves, 0))


@pytest.mark.parametrize("model", [latent_kronecker, multi_fidelity])
def test_process_beats_a_constant_on_a_smooth_family(model: Any) -> None:
    random = np.random.default_rng(3)
    terms = np.column_stack([random.uniform(0.1, 0.6, 16), random.uniform(1, 3, 16), -random.uniform(0, 4.5, 16)])
    growth = np.log(np.array(COLUMNS) / COLUMNS[0])
    losses = 3.8 - 0.05 * growth + np.sin(3 * terms[:, :1]) * 0.1 + 0.02 * terms[:, 2:] * growth
    curves = Curves("smooth", COLUMNS, losses + random.normal(0, 0.001, losses.shape), terms, np.ones(16),
                    np.arange(16), np.arange(16.0), BIT_TERMS, ELSEWHERE)
    constant = difference_error(losses[half_hidden(curves), -1])
    assert error(model, curves, 0) < 0.5 * constant


@pytest.mark.parametrize("name", list(MODELS))
def test_no_model_sees_what_is_hidden(name: str) -> None:
    curves = planted(12, 0.002)
    hidden = half_hidden(curves)
    spoiled = replace(curves, losses=curves.losses.copy())
    spoiled.losses[hidden, 2:] = 99.0
    for seen in (0,) if name in LIBRARY else (0, 1):
        before = predict(curves, seen, MODELS[name], [hidden])
        np.testing.assert_array_equal(before, predict(spoiled, seen, MODELS[name], [hidden]))
        assert np.isnan(before[~hidden]).all()
        assert np.isfinite(before[hidden]).all()


def test_rows_of_one_allocation_are_hidden_together_and_once() -> None:
    curves = replace(planted(40), allocation=np.arange(40) // 2)
    found = rounds(curves)
    assert set(found) == {IN_TURN, "half known", "8 known"}
    assert (np.sum(found[IN_TURN][0], axis=0) == 1).all()
    for mask in itertools.chain(*itertools.chain(*found.values())):
        np.testing.assert_array_equal(mask[::2], mask[1::2])
    assert {int(mask.sum()) for (mask,) in found["8 known"]} == {2 * (20 - 8)}
    assert "8 known" not in rounds(planted(13))


def test_error_of_a_difference_is_that_over_all_pairs() -> None:
    errors = np.random.default_rng(4).normal(size=9)
    pairs = [(a - b) ** 2 for a, b in itertools.combinations(errors, 2)]
    assert difference_error(errors) == pytest.approx(np.sqrt(np.mean(pairs)))
    bounds = intervals(errors, 2 * errors)
    assert bounds["rmse_low"] < difference_error(errors) < bounds["rmse_high"]
    assert bounds["over_last_value_low"] == pytest.approx(0.5) == bounds["over_last_value_high"]


def test_regret_is_of_the_choice_within_each_budget() -> None:
    losses, stored = np.array([4.0, 3.9, 3.8, 3.7, 3.6, 3.5, 3.4]), np.array([1, 2, 3, 4, 5, 6, 6.5])
    assert regret(losses, losses, stored, 1) == 0.0
    upside_down = -losses
    assert regret(upside_down, losses, stored, 1) == pytest.approx((0.5 + 0.6) / 2)  # budgets of six and of seven
    assert regret(upside_down, losses, stored, 3) == pytest.approx((0.3 + 0.4) / 2)
    assert regret(losses[:LEAST - 1], losses[:LEAST - 1], stored[:LEAST - 1], 1) is None


def test_too_few_allocations_have_null_rows_that_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "LIBRARY", (program.LAST,))
    monkeypatch.setattr(program, "MODELS", {name: MODELS[name] for name in MODELS if name not in LIBRARY})
    few, enough = planted(LEAST - 1, 0.002), planted(LEAST, 0.002)
    rows = list(prediction_rows(few, 0))
    assert [r["model"] for r in rows] == list(program.MODELS)
    assert all(r["rmse"] is r["spearman"] is r["regret"] is None and "5 allocations" in r["why"] for r in rows)
    assert all(t.value is None and not t.met and "5 allocations" in t.why for t in program.targets_of(rows))
    assert all(r["rmse"] is not None for r in prediction_rows(enough, 1))
    assert all(r["log2_rank"] is None and r["why"] for r in program.rates_rows("few", [few]))
    assert all(r["log2_rank"] is not None for r in program.rates_rows("enough", [enough]))


def test_far_allocations_are_left_out_and_best_rates_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "MODELS", {program.LAST: last_value})
    curves = planted(20, slope=np.zeros(3))
    order = curves.losses[:, 0].argsort()
    curves.losses[order[-3:]] += 1.0
    rows = {(r["protocol"], r["model"]): r for r in prediction_rows(curves, 0)}
    row = rows[IN_TURN, program.LAST]
    assert row["allocations"] == 17
    assert (row["rmse"], row["spearman"], row["regret"]) == (pytest.approx(0.0, abs=1e-9), 1.0, 0.0)
    twice = replace(curves, losses=np.vstack([curves.losses, curves.losses + 0.1]), terms=np.tile(curves.terms, (2, 1)),
                    rates=np.repeat([1.0, 2.0], 20), allocation=np.tile(np.arange(20), 2),
                    stored=np.tile(curves.stored, 2))
    np.testing.assert_array_equal(twice.best_rates(), twice.rates == 1.0)


def write(path: Path, allocation: Allocation, loss: float, steps: int = STEPS, seed: int = 1,
          split: str = "validation", rate: float = 1.0) -> None:
    looks = [step for step in (*LOOKS, STEPS) if step <= steps]
    curve = [[step, loss + 0.1 * (step < steps)] for step in looks]
    trial = PlannedTrial("plays", allocation, steps, seed, split, rate)
    append(path, to_event(trial, "a", {"state": "ok", "loss": loss, "curve": curve}, "s"))


def test_trials_become_curves_by_seed_and_split(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    a, b = uniform(30, "int3-g64", 15), uniform(30, "nf4", 2)
    for allocation, loss in ((a, 3.9), (b, 3.8), (uniform(30, "int8", 2), 3.7)):
        write(path, allocation, loss)
        write(path, allocation, loss + 0.2, steps=SHORT)
    write(path, a, 3.85, rate=0.5)
    for seed, shift in ((2, 0.0), (3, 0.02)):
        write(path, a, 4.0, seed=seed, split="test")
        write(path, b, 3.9 + shift, seed=seed, split="test")
    validation, *tests = of_trials(path)
    assert [len(c.losses) for c in (validation, *tests)] == [3, 2, 2]  # int8 has no sensitivity in the profile
    assert validation.n_allocations == 2
    np.testing.assert_allclose(validation.losses[0], [4.0, 4.0, 4.0, 3.9])
    assert validation.noise == pytest.approx(0.01)  # a - b differs by 0.02 between two seeds
    runs = of_best(path)
    np.testing.assert_allclose(runs.losses, [[4.1, 3.85], [4.0, 3.8]])  # each at the best of its rates
    profile = load_profile(PROFILE)
    level = np.clip(measured_sensitivity(profile, "divergence"), 0, None)
    level[:, 0] = level.max(axis=1)  # at 3 bits no less than at 4
    for row, column, rank in ((0, 0, 15), (1, 1, 2)):
        np.testing.assert_allclose(validation.terms[row], [level[:, column].sum(), np.sqrt(level[:, column]).sum(),
                                                           -np.log2(rank)], rtol=1e-9)


def test_command_writes_rows_without_any_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(program, "MODELS", dict.fromkeys(MODELS, last_value))
    absent = str(tmp_path / "absent.jsonl")
    assert program.main(["--trials", absent, "--table", absent, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "length_model.json").read_text())
    rows = [r for r in found["rows"] if r["part"] == "prediction"]
    assert {r["rmse"] is None for r in rows if r["of_steps"] == STEPS} == {True}
    assert {r["over_last_value"] for r in rows if r["of_steps"] != STEPS} == {1.0}
    rates = [r for r in found["rows"] if r["part"] == "exchange rates"]
    assert [r["step"] for r in rates] == [*COLUMNS, *COLUMNS, SHORT, STEPS, SHORT, STEPS, 12, 24, 12, 24]
    assert all((r[name] is None) == (r["allocations"] == 0) for r in rates for name in NAMES)
    assert sum(t["value"] is None for t in found["targets"]) == 18  # three for each of 24, 72 and a run of 24, twice


def test_planted_exponents_are_recovered_and_few_data_keep_the_prior() -> None:
    rates = Rates(np.array([0.2, 0.02, 0.005]), np.eye(3), 0.01, 24, 2)
    whole = planted()
    slopes = [rates.slopes * (steps / 24) ** np.array([-0.2, -0.2, 0.3]) for steps in (24, STEPS)]
    losses = np.column_stack([level + whole.terms @ s for level, s in zip((3.9, 3.6), slopes, strict=True)])
    curves = replace(whole, steps=(24, STEPS), losses=losses)
    found = exponents([curves], rates)
    assert (found.damage, found.rank) == (pytest.approx(-0.2, abs=0.04), pytest.approx(0.3, abs=0.04))
    assert found.allocations == len(losses)
    alone = exponents([curves.rows(np.arange(len(losses)) == 0)], rates)
    assert (alone.damage, alone.rank) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))
    assert alone.rank_se == pytest.approx(0.3)


def test_shipped_exponents_are_those_of_the_published_study() -> None:
    rows = json.loads((RESULTS / "length_model.json").read_text(encoding="utf-8"))["rows"]
    found = next(r for r in rows if r["part"] == "exponents")  # the first, of all data
    assert EXPONENTS.tolist() == [round(found["damage"], 2), round(found["damage"], 2), round(found["rank"], 2)]
    assert DEVIATIONS.tolist() == [round(found["damage_se"], 2), round(found["damage_se"], 2),
                                   round(found["rank_se"], 2)]


def test_tuned_runs_are_those_whose_rates_are_known_at_both_lengths() -> None:
    def event(bits: int, rank: int, steps: int, factor: float, loss: float) -> dict[str, Any]:
        trial = PlannedTrial("plays", uniform_choice(bits, rank).allocation, steps, SEARCH_SEED, "validation", factor)
        return to_event(trial, "", {"loss": loss, "state": "ok"}, "")

    events = [event(4, 1, steps, factor, 3 + steps / 100 + np.log2(factor) ** 2)
              for steps in (24, 240) for factor in (0.5, 1.0, 2.0)]
    events += [event(4, 16, 24, factor, 3.2) for factor in (0.5, 1.0, 2.0)]
    curves = of_rates({trial_of(e).key: e for e in events})
    assert curves.steps == (24, 240)
    np.testing.assert_allclose(curves.losses, [[3.24, 5.4]])
    assert np.isfinite(curves.terms).all()
