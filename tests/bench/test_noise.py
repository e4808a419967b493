"""Noise of paired differences: planted variances, closed forms and brute force."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import noise
from bench.collect.task import DATA
from bench.noise_losses import Repeats, comparison_repeats
from bench.noise_trials import BY
from qra_bo.oracle.emulator.levels import Noise
from qra_bo.oracle.emulator.table import load_table
from qra_bo.space import Allocation, FloatArray


def repeats(losses: FloatArray) -> Repeats:
    """Losses of as many allocations at one learning rate."""
    n = len(losses)
    return Repeats(tuple(Allocation(("nf4",), (rank + 1,)) for rank in range(n)), losses, np.ones(n),
                   np.full(n, np.nan))


def planted(n: int, seeds: int, sd: float, level: float) -> FloatArray:
    """Losses with a level of every seed and independent noise, ``n x seeds``."""
    rng = np.random.default_rng(1)
    return 3.0 + rng.uniform(0, 0.01, (n, 1)) + level * rng.standard_normal(seeds) + sd * rng.standard_normal(
        (n, seeds))


def test_paired_deviation_is_that_of_two_losses() -> None:
    row, *others = noise.seed_rows("plays", "test", repeats(planted(40, 8, 0.004, 0.02)))
    assert row["sd"] == pytest.approx(np.sqrt(2) * 0.004, rel=0.1)
    assert row["low"] < np.sqrt(2) * 0.004 < row["high"]
    assert (row["pairs"], row["allocations"], row["seeds"]) == (780, 40, 8)
    assert sum(other["pairs"] for other in others) == row["pairs"]  # alike and not; none at two rates


def test_level_of_a_seed_leaves_paired_variances_alone() -> None:
    losses = planted(5, 4, 0.01, 0.0)
    moved = noise.paired_variances(losses + np.array([0.3, -0.1, 0.2, 5.0]))
    for pair, (variance, freedom) in noise.paired_variances(losses).items():
        assert moved[pair][0] == pytest.approx(variance)
        assert moved[pair][1] == freedom


def test_pairs_far_apart_or_with_one_seed_do_not_count() -> None:
    losses = np.array([[3.0, 3.01, np.nan], [3.0, np.nan, 3.02], [4.0, 4.0, 4.0]])
    assert set(noise.paired_variances(losses)) == {(0, 2), (1, 2)}
    assert noise.near_pairs(repeats(losses), lambda i, j: True) == {}


def test_alike_allocations_differ_little_in_both() -> None:
    base = Allocation(("nf4",) * 30, (4,) * 30)
    assert noise.alike(base, Allocation(("int8",) * 8 + ("nf4",) * 22, (8,) * 30))
    assert not noise.alike(base, Allocation(("int8",) * 9 + ("nf4",) * 21, (4,) * 30))
    assert not noise.alike(base, Allocation(("nf4",) * 30, (10,) * 30))


def test_splits_differ_by_what_is_planted() -> None:
    losses = np.array([[3.0, 3.0], [3.01, 3.01]])
    known = repeats(losses)
    moved = Repeats(known.allocations, losses, known.rates, np.array([3.5, 3.513]))
    row = noise.splits_row("plays", moved)
    assert row["sd"] == pytest.approx(0.003)
    assert row["sd_of_seeds"] == 0.0


def test_rounding_counts_what_differs() -> None:
    row = noise.rounding_row("plays", [(3.0, 3.0), (3.0, 3.003), (3.1, 3.096)])
    assert row["pairs"] == 2
    assert row["sd"] == pytest.approx(0.005 / np.sqrt(2))


def test_parts_have_the_cluster_variance_of_a_mean() -> None:
    sums = np.random.default_rng(0).standard_normal((4000, 32)) * 2.0
    found = np.mean([noise.of_parts(s, np.full(32, 10.0)) for s in sums])
    assert found == pytest.approx((sums.sum(axis=1) / 320).var(), rel=0.05)


def test_variance_of_the_text_is_that_of_a_trial() -> None:
    parts, tokens, sd = 800, 50, 0.004
    share = parts * BY / noise.SEQUENCES  # the text is so much longer than a trial's
    rng, rows = np.random.default_rng(3), []
    for seed in range(3):
        apart = sd * tokens * np.sqrt(parts / share) * rng.standard_normal(parts)
        rows += [{"fingerprint": name, "train_seed": seed, "sums": sums.tolist(), "counts": [tokens] * parts}
                 for name, sums in (("a", 3.0 * tokens + apart), ("b", np.full(parts, 3.0 * tokens)))]
    assert np.sqrt(noise.text_variance(rows)) == pytest.approx(sd, rel=0.1)


def test_costs_of_more_text_and_of_a_second_seed() -> None:
    rows = {r["way"]: r for r in noise.cost_rows(load_table(DATA / "plays"), 6.0, 2.0)}
    assert rows["today"]["cost"] == 1.0
    assert rows["today"]["information"] == [1.0, 1.0]
    twice, seeds = rows["twice the text"], rows["a second seed"]
    assert twice["cost"] == pytest.approx((12288 + 2 * 8192 / 3) / (12288 + 8192 / 3))
    assert seeds["cost"] == 2.0
    assert np.square(twice["sd"]).tolist() == pytest.approx([6 + 1, 4 + 1])
    assert np.square(seeds["sd"]).tolist() == pytest.approx([3 + 2, 3])
    assert twice["information"] == pytest.approx([8 / 7 / twice["cost"], 6 / 5 / twice["cost"]])


@pytest.mark.parametrize("way", ["twice the text", "four times the text"])
def test_more_text_pays_from_its_share_of_the_noise_on(way: str) -> None:
    table = load_table(DATA / "plays")
    share = next(r["pays_from"] for r in noise.cost_rows(table, 1.0, None) if r["way"] == way)
    assert 0 < share < 1
    even = next(r["information"] for r in noise.cost_rows(table, 1 - share, share) if r["way"] == way)
    assert even[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("ratio", "shared"), [(1.35, 0.68), (1.0, 0.2), (1.5, 0.9)])
def test_weight_of_an_early_loss_is_the_best(ratio: float, shared: float) -> None:
    row = noise.averaging_row(load_table(DATA / "plays"), Noise((1.0, 2.0), (0.1, 0.2), 0.0, ((ratio, shared),)))
    weights = np.linspace(0, 1, 2001)
    left = (1 - weights) ** 2 + (weights * ratio) ** 2 + 2 * weights * (1 - weights) * ratio * shared
    assert row["variance_left"] == pytest.approx(left.min(), abs=1e-5)


def test_journals_give_test_losses_by_choice_and_seed(tmp_path: Path) -> None:
    allocation = Allocation(("nf4", "int8"), (2, 4))
    name = allocation.fingerprint
    header = {"event": "header", "config": {"quantizer": {"rounding": "gptq"}}}
    keys = [f"{name}-kaiming-gptq16-24-lr0.979-t{seed}-test" for seed in (5, 6, 7)]
    compared = [header, *({"event": "trial", "state": "ok", "key": key, "loss": 3.0 + i} for i, key in enumerate(keys)),
                {"event": "trial", "state": "ok", "key": f"{name}-eva-24-lr0.979-t5-test", "loss": 9.0}]
    trial = {"event": "trial", "state": "ok", "key": "", "fingerprint": name, "formats": ["nf4", "int8"],
             "ranks": [2, 4], "split": "validation", "steps": 24, "init": None, "codes": None, "lr_scale": 0.9787,
             "train_seed": 1803898461, "loss": 3.5}
    (tmp_path / "table1.jsonl").write_text("\n".join(map(json.dumps, compared)))
    (tmp_path / "trials.jsonl").write_text("\n".join(map(json.dumps, [header, trial, {**trial, "steps": 12}])))
    found = comparison_repeats([tmp_path], 4.0)
    assert found.allocations == (allocation,)
    assert found.losses.tolist() == [[3.0, 4.0, 5.0]]
    assert found.validation.tolist() == [3.5]
    assert comparison_repeats([tmp_path], 3.9).allocations == ()
