"""Memory tables: totals by hand and against a loop."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.space import CostTable, PhaseCost


def test_by_hand() -> None:
    unit = np.array([[[1, 2], [3, 4]], [[10, 20], [30, 40]]])
    spike = np.array([[[5, 5], [7, 7]], [[6, 6], [0, 0]]])
    table = CostTable((PhaseCost("a", 100, unit, spike), PhaseCost("b", 117, unit, 0 * spike)))
    # formats 1, 0 and ranks 0, 1: 3 + 20, spikes 7 and 6
    assert table.totals(np.array([[1, 0, 0, 1]])).tolist() == [117 + 23]
    assert CostTable(table.phases[:1]).totals(np.array([[1, 0, 0, 1]])).tolist() == [100 + 23 + 7]
    assert table.feasible(np.array([[1, 0, 0, 1], [0, 0, 0, 0]]), 139).tolist() == [False, True]
    assert table.feasible(np.array([[1, 0, 0, 1]]), 140).tolist() == [True]
    assert table.totals(np.zeros((0, 4), dtype=np.int64)).shape == (0,)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_equals_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, f, r = (int(v) for v in rng.integers(1, 5, 3))
    phases = tuple(PhaseCost(str(i), int(rng.integers(100)), rng.integers(0, 2**40, (n, f, r)),
                             rng.integers(0, 2**40, (n, f, r))) for i in range(rng.integers(1, 4)))
    rows = np.hstack([rng.integers(0, f, (6, n)), rng.integers(0, r, (6, n))])
    for row, total in zip(rows, CostTable(phases).totals(rows), strict=True):
        cells = [(u, row[u], row[u + n]) for u in range(n)]
        assert total == max(p.fixed + sum(int(p.unit[c]) for c in cells) + max(int(p.spike[c]) for c in cells)
                            for p in phases)
