"""How emulators predict finds of searches: which finds count, and bias and deviation in closed form."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.emulator.table import TableRow
from bench.emulators import find_rows
from qra_bo.space import Allocation, uniform
from qra_bo.trials import TrialState

FITTED, OUTSIDE = uniform(2, "nf4", 1), uniform(2, "nf4", 99)
FINDS = [uniform(2, "nf4", rank) for rank in range(2, 22)]


def find(allocation: Allocation, loss: float, seed: int = 5, rate: float = 1.2) -> TableRow:
    return TableRow(allocation, "found", seed, rate, TrialState.OK, loss, 0.1, (), {}, 1.0, "b")


def emulator(errors: dict[Allocation, float], real: dict[Allocation, float]) -> Any:
    """An emulator that is off by ``errors``."""
    return SimpleNamespace(
        facts=SimpleNamespace(task="toy", train_seeds=(5, 6)), family="boosted", rate=1.2,
        data=SimpleNamespace(allocations=(FITTED,)), covers=lambda allocation: allocation != OUTSIDE,
        losses=lambda allocations: np.array([[9.0, real[a] + errors[a]] for a in allocations]))


def test_bias_and_deviation_of_finds_within_the_domain() -> None:
    real = {a: 3.0 + 0.01 * i for i, a in enumerate(FINDS)}
    errors = {a: 0.001 * (1 + (i % 2)) + 0.1 * (i >= 10) for i, a in enumerate(FINDS)}
    rows = [find(a, loss) for a, loss in real.items()]
    others = [find(FITTED, 1.0), find(OUTSIDE, 1.0), find(FINDS[0], 9.0, seed=6), find(FINDS[0], 9.0, rate=2.4)]
    whole, good = find_rows(emulator(errors, real), [*rows, *others])
    assert (whole["finds"], whole["n"], whole["outside"]) == ("all", 20, 1)
    assert (good["finds"], good["n"], good["outside"]) == ("better half", 10, 1)
    assert (whole["spearman"], good["spearman"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert whole["bias"] == pytest.approx(0.0515)
    assert good["bias"] == pytest.approx(0.0015)
    assert good["sd"] == pytest.approx(0.0005 * (10 / 9) ** 0.5)
