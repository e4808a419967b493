"""The planted landscape in closed form and against brute force, and the oracle around it."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from bench.optimum import optimum, true_losses
from qra_bo.oracle.synthetic import FLOOR, INTERACTION, KNEE, TOTAL_TASK, Landscape, StepsDone, SyntheticOracle, phi
from qra_bo.space import uniform
from qra_bo.study.intervals import interval_of
from qra_bo.trials import TrialSpec
from qra_bo.utils.errors import BudgetError
from tests.conformance.oracle import OracleSuite, quiet
from tests.spaces import every_row, make_costs, make_space

SPACE = make_space(6)


class TestConformance(OracleSuite):
    make = staticmethod(lambda: SyntheticOracle(SPACE, 3))
    allocations = (uniform(6, "nf4", 4), uniform(6, "int8", 1))
    high_steps, low_steps = 24, 6


def loss_of(oracle: SyntheticOracle, fmt: str, rank: int, **kwargs: object) -> float:
    settings: dict[str, object] = {"steps": 24, "schedule_steps": 24, "train_seed": 0, "learning_rate": 2e-3, **kwargs}
    m = oracle.evaluate(TrialSpec(uniform(6, fmt, rank), **settings), quiet)  # type: ignore[arg-type]
    assert m.loss is not None
    return m.loss


def test_sensitivities_add_up_to_more_than_their_sum() -> None:
    x = np.array([0.0, 0.1, KNEE, KNEE + 1.0])
    slope = 1 + 2 * INTERACTION * KNEE
    np.testing.assert_allclose(phi(x), [0, 0.1 + INTERACTION * 0.01, KNEE + INTERACTION * KNEE**2,
                                        KNEE + INTERACTION * KNEE**2 + slope], rtol=1e-12)
    assert phi(np.array([0.2]))[0] > 2 * phi(np.array([0.1]))[0]


def test_true_losses_equal_the_formula_and_the_noiseless_oracle() -> None:
    oracle = SyntheticOracle(SPACE, 3, noise=0.0)
    rows = np.stack([SPACE.encode(uniform(6, f, r)) for f in ("hqq2", "nf4") for r in (1, 8)])
    land, n = oracle.landscape, 6
    for row, loss in zip(rows, true_losses(oracle.landscape, rows), strict=True):
        ranks = np.array([SPACE.ranks[i] for i in row[n:]], dtype=float)[:, None]
        left = (land.quantization_sensitivity[np.arange(n), row[:n]] * land.kept(ranks)[:, 0]).sum()
        assert loss == pytest.approx(FLOOR + phi(np.array([left]))[0] + land.missed(ranks).sum(), abs=1e-12)
        a = SPACE.decode(row)
        assert loss_of(oracle, a.formats[0], a.ranks[0]) == pytest.approx(loss, abs=1e-12)


def test_ranks_gain_more_at_low_bits_and_references_are_evaluated() -> None:
    oracle = SyntheticOracle(SPACE, 3, noise=0.0)
    bought = [loss_of(oracle, f, 1) - loss_of(oracle, f, 8) for f in ("hqq2", "hqq3", "nf4", "int8", "fp16")]
    assert (np.diff(bought) < 0).all()
    assert loss_of(oracle, "fp16", 16) < loss_of(oracle, "int8", 16) < loss_of(oracle, "nf4", 16)
    assert loss_of(oracle, "hqq3-g128", 4) != loss_of(oracle, "hqq3", 4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("quantile", [0.02, 0.2, 0.6])
def test_the_optimum_is_the_best_of_all_rows(seed: int, quantile: float) -> None:
    space = make_space(3, ranks=(1, 4, 8))
    costs, rows, land = make_costs(space), every_row(space), Landscape(space, seed)
    budget = int(np.quantile(costs.totals(rows), quantile))
    best = float(true_losses(land, rows[costs.feasible(rows, budget)]).min())
    found = optimum(land, costs, budget)
    assert costs.feasible(found.row[None], budget)[0]
    assert found.loss == pytest.approx(true_losses(land, found.row[None])[0])
    assert found.bound - 1e-9 <= best <= found.loss
    assert found.loss - best < 0.01
    with pytest.raises(BudgetError):
        optimum(land, costs, int(costs.totals(rows).min()) - 1)


def test_noise_depends_on_seed_and_candidate_and_its_level_is_shared() -> None:
    oracle = SyntheticOracle(SPACE, 3, noise=0.005)
    exact = SyntheticOracle(SPACE, 3, noise=0.0)
    shifts = np.array([[loss_of(oracle, f, r, train_seed=s) - loss_of(exact, f, r) for f in ("nf4", "int8")
                        for r in (1, 2, 4, 8)] for s in range(60)])
    assert shifts.mean(axis=1).std() == pytest.approx(0.02, rel=0.35)
    own = shifts - shifts.mean(axis=1, keepdims=True)
    assert own.std() == pytest.approx(0.005, rel=0.2)


def test_intervals_of_test_losses_cover_the_planted_difference() -> None:
    allocations = [(f, r) for f in ("hqq3", "nf4", "int8") for r in (1, 2, 4, 8)]
    covered = []
    for seed in range(10):
        oracle, exact = SyntheticOracle(SPACE, seed), SyntheticOracle(SPACE, seed, noise=0.0)
        for a, b in itertools.pairwise(allocations):
            sides = [[oracle.evaluate(TrialSpec(uniform(6, *side), 24, 24, s, 2e-3, split="test"), quiet)
                      for s in range(5)] for side in (a, b)]
            ours, theirs = ([m.sequence_losses for m in side] for side in sides)
            losses = [[m.loss or 0.0 for m in side] for side in sides]
            assert losses[0][0] == pytest.approx(sum(x for x, _, _ in ours[0]) / sum(n for _, n, _ in ours[0]))
            found, over_text = interval_of(np.subtract(*losses).tolist(), ours, theirs)
            truth = loss_of(exact, *a) - loss_of(exact, *b)
            covered.append(over_text and found.low <= truth <= found.high)
    assert 0.9 <= np.mean(covered) < 1


def test_splits_schedules_and_rates_change_the_loss() -> None:
    oracle = SyntheticOracle(SPACE, 3, noise=0.0)
    base = loss_of(oracle, "nf4", 4)
    assert loss_of(oracle, "nf4", 4, split="test") == pytest.approx(base + 0.03)
    assert loss_of(oracle, "nf4", 4, steps=96, schedule_steps=96) == pytest.approx(base - 0.12)
    assert loss_of(oracle, "nf4", 4, learning_rate=4e-3) == pytest.approx(base + 0.03)
    assert loss_of(oracle, "nf4", 4, steps=6) > base


def test_profile_correlates_with_the_landscape_imperfectly() -> None:
    oracle = SyntheticOracle(make_space(100), 1)
    profile = oracle.profile(quiet)
    planted = oracle.landscape.quantization_sensitivity
    correlation = spearmanr(profile.quantization_sensitivity[:, 2], planted[:, 2]).statistic
    assert 0.8 < correlation < 0.99
    assert 0.7 < spearmanr(profile.require_rank_sensitivity()[:, -1], oracle.landscape.task).statistic < 0.99
    assert profile.base_loss == pytest.approx(FLOOR + TOTAL_TASK)


def test_promotion_after_a_restart_is_charged_its_additional_steps(tmp_path: Path) -> None:
    request = [TrialSpec(uniform(6, "nf4", 4), steps, 24, 0, 2e-3) for steps in (6, 24)]

    def spent(i: int, folder: Path | None) -> tuple[int, int]:
        m = SyntheticOracle(SPACE, 3, checkpoints=folder).evaluate(request[i], quiet)
        return m.new_steps, m.training_tokens

    assert spent(0, tmp_path / "c") == (6, 6 * 256)
    assert spent(1, tmp_path / "c") == (18, 18 * 256)
    assert spent(1, tmp_path / "c") == (18, 18 * 256)  # cut off before its result was written down
    assert spent(1, None) == (24, 24 * 256)


def test_training_with_other_codes_continues_none() -> None:
    done, low = StepsDone(None), TrialSpec(uniform(6, "nf4", 4), 6, 24, 0, 2e-3)
    assert done.start(low) == 0
    assert done.start(replace(low, steps=24, codes="rtn")) == 0
    assert done.start(replace(low, steps=24)) == 6
