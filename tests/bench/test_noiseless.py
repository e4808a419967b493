"""Searches on emulators without noise, on the scale of those with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.emulator.oracle import load_oracle
from bench.search.methods import EVERYTHING
from bench.search.noiseless import row_without_noise
from bench.search.play import make_arena, play
from tests.bench.tables import make_setting, make_table


def test_regrets_without_noise_are_on_the_published_scale(tmp_path: Path) -> None:
    setting = make_setting()
    oracle = load_oracle(make_table(tmp_path), "boosted", setting.space, noise=0.0)
    budget = oracle.table.facts.budgets[0]
    arena = make_arena(oracle, setting.space, budget, setting.predictors[budget.scope])
    known: dict[str, Any] = {"task": "plays", "emulator": "boosted", "budget": budget.text, "method": "random",
                             "best_known": 3.0, "best_uniform": 5.0, "regret": 0.25}
    row = row_without_noise(arena, known, 2, 12.0)
    runs = [play(arena, EVERYTHING["random"], seed, 12.0) for seed in range(2)]
    assert row["finals"] == pytest.approx([(run["trace"][-1][1] - 3.0) / 2.0 for run in runs])
    assert row["regret"] == pytest.approx(np.median(row["finals"]))
    assert row["regret_with_noise"] == 0.25
    for run in runs:  # what is seen is what is true
        assert all(find["loss"] == pytest.approx(find["true_loss"], abs=1e-12) for find in run["finds"])
