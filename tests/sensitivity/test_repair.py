"""Eqs. 4-5: the heap against the direct transcription, and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.sensitivity.importance import EPS, Repair
from qra_bo.space import CostTable, PhaseCost
from qra_bo.utils.errors import BudgetError

Case = tuple[CostTable, np.ndarray, np.ndarray, np.ndarray, np.random.Generator]


def random_case(seed: int) -> Case:
    """Any tables at all: several phases, spikes that are shared, unique or absent, bytes that ranks may lower."""
    rng = np.random.default_rng(seed)
    n, f, r = int(rng.integers(1, 7)), int(rng.integers(1, 5)), int(rng.integers(1, 5))
    monotone = rng.random() < 0.7
    phases = []
    for p in range(rng.integers(1, 4)):
        unit = rng.integers(0 if rng.random() < 0.3 else 1, 60, (n, f, r))
        spike = rng.integers(0, rng.choice([1, 3, 200]), (n, f, r))
        if monotone:
            unit, spike = (np.cumsum(np.cumsum(t, axis=1), axis=2) for t in (unit, spike))
        phases.append(PhaseCost(f"p{p}", int(rng.integers(0, 100)), unit, spike))
    row = np.concatenate([rng.integers(0, f, n), rng.integers(0, r, n)])
    importance = np.round(rng.random((2, n)), 1)  # rounded, so that ties happen
    return CostTable(tuple(phases)), row, importance[0], importance[1], rng


def transcribed(row: np.ndarray, costs: CostTable, budget: int, i_q: np.ndarray, i_r: np.ndarray,
                keep: frozenset[int] = frozenset()) -> np.ndarray:
    """Eqs. 4-5 as they stand: every step scores all edits anew, by the phase that binds."""
    weights, row = np.concatenate([i_q, i_r]) + EPS, row.copy()
    phases = [CostTable((phase,)) for phase in costs.phases]
    while costs.totals(row[None])[0] > budget:
        movable = [int(c) for c in np.flatnonzero(row) if int(c) not in keep]
        if not movable:
            raise BudgetError("nothing of it can be lowered")
        binding = max(phases, key=lambda table: int(table.totals(row[None])[0]))
        saved = binding.totals(row[None])[0] - binding.totals(row - np.eye(len(row), dtype=np.int64)[movable])
        scores = [(s <= 0, weights[c] / s if s > 0 else weights[c], c) for c, s in zip(movable, saved, strict=True)]
        row[min(scores)[2]] -= 1
    return row


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_equals_the_direct_transcription(seed: int) -> None:
    costs, row, i_q, i_r, rng = random_case(seed)
    budget = int(costs.totals(row[None])[0] * rng.uniform(0.2, 1.05))
    keep = frozenset(int(i) for i in rng.choice(len(row), size=rng.integers(0, 2)))
    repair = Repair(costs, budget, i_q, i_r)
    try:
        want = transcribed(row, costs, budget, i_q, i_r, keep)
    except BudgetError:
        with pytest.raises(BudgetError, match="nothing of it can be lowered"):
            repair(row, keep)
        return
    np.testing.assert_array_equal(repair(row, keep), want)
    assert costs.feasible(want[None], budget)[0]
    assert (want <= row).all()


def test_least_importance_per_byte_goes_first() -> None:
    # Two units, 2 formats x 2 ranks: q saves 100 bytes, r saves 10. Scores: .5/100, 1/100, .04/10, .2/10.
    unit = np.tile(np.array([[0, 10], [100, 110]]), (2, 1, 1))
    costs = CostTable((PhaseCost("step", 0, unit, np.zeros_like(unit)),))
    top = np.ones(4, dtype=np.int64)
    i_q, i_r = np.array([0.5, 1.0]), np.array([0.04, 0.2])
    lowered = [Repair(costs, budget, i_q, i_r)(top) for budget in (220, 210, 110, 10, 0)]
    assert [r.tolist() for r in lowered] == [[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert top.tolist() == [1, 1, 1, 1]


def test_spikes_that_several_units_share_do_not_block() -> None:
    spike = np.tile(np.array([[10], [50]]), (3, 1, 1))
    costs = CostTable((PhaseCost("backward", 0, np.zeros_like(spike), spike),))
    repaired = Repair(costs, 10, np.array([0.1, 0.2, 0.3]), np.zeros(3))(np.array([1, 1, 1, 0, 0, 0]))
    assert repaired.tolist() == [0] * 6
