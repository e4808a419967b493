"""Memory tables: totals against a loop."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.space import CostTable, PhaseCost


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_equals_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, f, r = (int(v) for v in rng.integers(1, 5, 3))
    phases = tuple(PhaseCost(str(i), int(rng.integers(100)), rng.integers(0, 2**40, (n, f, r)),
                             rng.integers(0, 2**40, (n, f, r))) for i in range(rng.integers(1, 4)))
    rows = np.hstack([rng.integers(0, f, (6, n)), rng.integers(0, r, (6, n))])
    table = CostTable(phases)
    assert table.totals(rows[:0]).shape == (0,)
    for row, total in zip(rows, table.totals(rows), strict=True):
        cells = [(u, row[u], row[u + n]) for u in range(n)]
        assert total == max(p.fixed + sum(int(p.unit[c]) for c in cells) + max(int(p.spike[c]) for c in cells)
                            for p in phases)
        assert [table.feasible(row[None], int(total) - short).tolist() for short in (0, 1)] == [[True], [False]]
