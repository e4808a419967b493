"""The oracle over a table of trials: files, levels and noise, emulators, domain, and its conformance."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from bench.emulator.emulator import FAMILIES, Emulator, rate_curve, table_rate, usable
from bench.emulator.features import Reach, Warp
from bench.emulator.levels import Noise, level_of, levelled
from bench.emulator.oracle import EmulatorOracle
from bench.emulator.table import Table, TableRow, load_costs, load_rows, load_table
from bench.optimum import true_losses
from qra_bo.space import Allocation, uniform
from qra_bo.trials import TrialSpec, TrialState
from qra_bo.utils.errors import ContractError
from tests.bench.tables import make_oracle, make_table, write_rows
from tests.conformance.oracle import OracleSuite, quiet
from tests.spaces import every_row, make_costs, make_space

SPACE = make_space(4)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="session")
def table(folder: Path) -> Table:
    return load_table(folder)


@pytest.fixture(scope="session", params=list(FAMILIES))
def emulator(request: pytest.FixtureRequest, table: Table) -> Emulator:
    return Emulator(table, request.param)


class TestConformance(OracleSuite):
    allocations = (uniform(4, "nf4", 4), uniform(4, "int8", 1))
    high_steps, low_steps = 24, 6

    @pytest.fixture(autouse=True)
    def fitted(self, emulator: Emulator) -> None:
        self.make = lambda: EmulatorOracle(emulator, SPACE, "0" * 64)  # type: ignore[method-assign]


def test_rows_survive_their_file_exactly(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_rows(path, table.facts, table.rows)
    assert load_rows(path, table.facts) == table.rows


def test_memory_is_that_of_the_task(folder: Path) -> None:
    rows = every_row(SPACE)[::97]
    for costs in load_costs(folder).values():
        np.testing.assert_array_equal(costs.totals(rows), make_costs(SPACE).totals(rows))


def row(losses: dict[int, float], ranks: tuple[int, ...] = (1, 1, 1, 1), rate: float = 1.0) -> list[TableRow]:
    """One allocation evaluated at several training seeds."""
    return [TableRow(Allocation(("nf4",) * 4, ranks), "near", seed, rate, TrialState.OK, loss, 0.1, (None, loss + 1.0),
                     {"peak": 1, "stored": 1}, 1.0, "b") for seed, loss in losses.items()]


def test_levels_and_noise_in_closed_form() -> None:
    rows = [*row({1: 4.0, 2: 4.1 + 0.02}, (1, 1, 1, 1)), *row({1: 4.0, 2: 4.1 - 0.02}, (2, 1, 1, 1)),
            *row({1: 6.0, 2: 6.1 + 0.06}, (4, 1, 1, 1)), *row({1: 6.0, 2: 6.1 - 0.06}, (8, 1, 1, 1)),
            *row({9: 3.0}, (1, 1, 1, 2))]
    found = levelled(rows, 1, 1.0)
    assert rows[-1].allocation not in found.allocations  # its seed shares nothing with the first
    np.testing.assert_allclose(found.targets[:, -1], [4.01, 3.99, 6.03, 5.97])
    assert np.isnan(found.targets[:, 0]).all()
    np.testing.assert_allclose(found.targets[:, 1], found.targets[:, 2] + 1.0)
    np.testing.assert_allclose(found.noise.deviations, [0.01 * 2**0.5, 0.03 * 2**0.5])
    assert found.noise.losses == pytest.approx((4.0, 6.0))
    assert found.noise.level == pytest.approx(0.1)
    np.testing.assert_allclose(found.noise.at(np.array([0.0, 5.0, 9.0])), np.array([0.01, 0.02, 0.03]) * 2**0.5)


def test_level_is_weighted_by_the_noise() -> None:
    noise = Noise((4.0, 6.0), (0.01, 0.1), 0.0)
    differences = [np.array([np.nan, 1.0, 0.1]), np.array([np.nan, np.nan, 0.3])]
    found = level_of(differences, np.array([3.9, 6.0]), noise)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], [1.0, (0.1 * 1e4 + 0.3 * 1e2) / (1e4 + 1e2)])
    np.testing.assert_allclose(level_of(differences, np.array([3.9, 6.0]), None)[2], 0.2)


def test_early_noise_correlates_with_the_noise_at_the_end() -> None:
    noises = [0.01, -0.02, 0.03, 0.01, -0.03]
    rows = []
    for index, noise in enumerate(noises):
        for seed, sign in ((1, -1.0), (2, 1.0)):
            late, early = 4.0 + index + sign * noise, 5.0 + index + 2.0 * sign * noise
            rows.append(dataclasses.replace(row({seed: late}, (index + 1, 1, 1, 1))[0], early=(None, early)))
    found = levelled(rows, 1, 1.0)
    # A mirror image of the noise, twice as large; the first look was never recorded.
    assert found.noise.early == ((1.0, 0.0), (pytest.approx(2.0), pytest.approx(1.0)))


def test_the_warp_inverts_and_bends() -> None:
    losses = np.array([4.0, 4.1, 4.2, 4.5, 9.0])
    warp = Warp.to(losses)
    np.testing.assert_allclose(warp.inverse(warp.forward(losses)), losses, rtol=1e-12)
    np.testing.assert_allclose(warp.inverse(warp.forward(np.array([3.7]))), [3.7], rtol=1e-12)
    z = warp.forward(losses)
    assert z.mean() == pytest.approx(0.0, abs=1e-12)
    assert (z[4] - z[3]) / (z[1] - z[0]) < (9.0 - 4.5) / 0.1


def test_reach_ends_where_rows_are_rare() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 3))
    reach = Reach(rows)
    assert reach.contains(rows).all()
    assert not reach.contains(np.full((1, 3), 9.0))[0]
    assert reach.contains(rows + 1e-3).all()


def test_emulators_rank_unseen_allocations(emulator: Emulator) -> None:
    oracle = make_oracle()
    known = set(emulator.data.allocations)
    rng = np.random.default_rng(1)
    rows = every_row(SPACE)[rng.permutation(len(every_row(SPACE)))[:300]]
    new = tuple(a for a in map(SPACE.decode, rows) if a not in known)
    predicted = emulator.losses(new)[:, -1]
    true = true_losses(oracle.landscape, np.stack([SPACE.encode(a) for a in new]))
    assert spearmanr(predicted, true).statistic > 0.8


def test_the_learning_rate_follows_its_parabola(table: Table, emulator: Emulator) -> None:
    curvature, best = rate_curve(table.rows)
    assert curvature == pytest.approx(0.03, rel=0.3)  # what the planted landscape has, but for its noise
    assert best == pytest.approx(1.0, abs=0.15)
    assert emulator.rate_penalty(emulator.rate) == 0.0
    assert emulator.rate_penalty(2.0 * best) > emulator.rate_penalty(best)


def test_noise_is_that_of_the_repeats_and_follows_the_seed(emulator: Emulator) -> None:
    quietly = EmulatorOracle(emulator, SPACE, "0", noise=0.0)
    noisy = EmulatorOracle(emulator, SPACE, "0")
    allocation = uniform(4, "nf4", 2)
    base = quietly.evaluate(TrialSpec(allocation, 24, 24, 0, 2e-3 * emulator.rate), quiet).loss
    assert base == pytest.approx(emulator.losses((allocation,))[0, -1])
    losses = [noisy.evaluate(TrialSpec(allocation, 24, 24, seed, 2e-3 * emulator.rate), quiet).loss
              for seed in range(400)]
    own = float(emulator.noise.at(np.array([base]))[0])
    assert np.std(losses) == pytest.approx(np.hypot(own, emulator.noise.level), rel=0.15)
    # What one seed does to all allocations drops out of a difference.
    pairs = [noisy.evaluate(TrialSpec(uniform(4, "nf4", 4), 24, 24, seed, 2e-3 * emulator.rate), quiet).loss
             for seed in range(400)]
    assert np.std(np.subtract(losses, pairs)) == pytest.approx(own * 2**0.5, rel=0.2)


def test_trials_outside_the_domain_fail_and_other_steps_are_refused(emulator: Emulator) -> None:
    oracle = EmulatorOracle(emulator, SPACE, "0")
    for foreign in (uniform(4, "fp16", 4), uniform(4, "nf4", 64), uniform(3, "nf4", 4)):
        m = oracle.evaluate(TrialSpec(foreign, 24, 24, 0, 2e-3), quiet)
        assert (m.state, m.loss) == (TrialState.FAILED, None)
        assert "outside the domain" in m.message
    with pytest.raises(ContractError, match="records the losses after"):
        oracle.evaluate(TrialSpec(uniform(4, "nf4", 4), 7, 24, 0, 2e-3), quiet)


def test_calibration_rows_at_other_rates_are_left_out(table: Table) -> None:
    rate = table_rate(table.rows)
    calibrated = [r for r in table.rows if r.origin == "calibration"]
    other = [r for r in calibrated if r.lr_scale != rate]
    assert 0 < len(other) < len(calibrated)
    assert sum(usable(table).counts) == len(table.rows) - len(other)
