"""AMQ on a planted damage with interactions, and its rules."""

import numpy as np
import pytest

from bench.table1.amq import AMQ, AMQOptions
from qra_bo.space import CostTable, FloatArray, IntArray, PhaseCost

UNITS, FORMATS = 16, 4
BITS = np.array([2, 3, 4, 8])


def table(scale: int = 100) -> CostTable:
    unit = np.broadcast_to((scale * BITS)[None, :, None], (UNITS, FORMATS, 1)).copy()
    return CostTable((PhaseCost("stored", 1000, unit, np.zeros_like(unit)),))


def planted(seed: int = 0) -> tuple[FloatArray, object]:
    """Sensitivities of single units, and a joint damage that grows faster than their sum."""
    rng = np.random.default_rng(seed)
    alone = np.exp(rng.normal(0, 1.6, UNITS))[:, None] * np.array([1.0, 0.12, 0.03, 0.001])

    def measure(rows: IntArray) -> FloatArray:
        total = alone[np.arange(UNITS), rows].sum(axis=1)
        return total * (1 + 0.3 * total)

    return alone, measure


def search(seed: int, budget: int, **options: object) -> tuple[object, AMQ]:
    alone, measure = planted()
    amq = AMQ(table(), budget, alone, AMQOptions(**options), np.random.default_rng(seed))  # type: ignore[arg-type]
    return amq.run(measure), amq  # type: ignore[arg-type]


def test_divergence_is_below_random_bits_of_the_same_bytes() -> None:
    budget = 1000 + 100 * 4 * UNITS
    _, measure = planted()
    rng = np.random.default_rng(9)
    wins = 0
    for seed in range(2):
        found, _ = search(seed, budget)
        rows = []
        while len(rows) < 60:  # as many measurements, of random choices that use up the budget
            row = rng.integers(0, FORMATS, UNITS)
            if 0 <= budget - 1000 - 100 * BITS[row].sum() < 200:
                rows.append(row)
        best = float(measure(np.stack(rows)).min())  # type: ignore[operator]
        uniform = float(measure(np.full((1, UNITS), 2))[0])  # type: ignore[operator]
        assert found.divergence < uniform  # type: ignore[attr-defined]
        wins += found.divergence < best  # type: ignore[attr-defined]
    assert wins == 2


def test_it_is_the_same_again_keeps_the_budget_and_spends_what_it_may() -> None:
    budget = 1000 + 100 * 5 * UNITS
    first, amq = search(3, budget, evaluations=40)
    again, _ = search(3, budget, evaluations=40)
    assert np.array_equal(first.measured, again.measured)  # type: ignore[attr-defined]
    measured = first.measured  # type: ignore[attr-defined]
    assert len(measured) == 40
    assert len(np.unique(measured, axis=0)) == 40
    assert (1000 + 100 * BITS[measured].sum(axis=1) <= budget).all()
    _, measure = planted()
    assert first.divergence == pytest.approx(float(measure(first.choice[None, :])[0]))  # type: ignore[attr-defined, operator]
    assert first.divergence == first.divergences.min()  # type: ignore[attr-defined]
    assert amq.pruned


def test_sensitive_units_are_kept_from_low_bits() -> None:
    alone, _ = planted()
    lowest = alone[:, 0]
    found, amq = search(0, 1000 + 100 * 6 * UNITS, outlier=2.0)  # 4 bits fit everywhere
    worst = set(np.flatnonzero(lowest > 2 * np.median(lowest)).tolist())
    assert set(amq.pruned) == worst
    assert (found.measured[:, sorted(worst)] >= 2).all()  # type: ignore[attr-defined]
    assert (np.delete(found.measured, sorted(worst), axis=1) < 2).any()  # type: ignore[attr-defined]
