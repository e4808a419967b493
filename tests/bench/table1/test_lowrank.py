"""Low-rank factors against plain singular value decompositions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.table1.lowrank import leading


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 24), st.integers(0, 9))
def test_no_matrix_of_the_rank_is_closer(rows: int, columns: int, rank: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    rank = min(rank, rows, columns)
    factors = leading(matrix, rank)
    assert factors.down.shape == (rank, columns)
    assert factors.up.shape == (rows, rank)
    values = torch.linalg.svdvals(matrix.double())
    norms = torch.linalg.vector_norm(factors.up, dim=0).double()
    torch.testing.assert_close(norms, values[:rank], rtol=1e-3, atol=2e-3)
    error = float(torch.linalg.vector_norm(matrix - factors.product()))
    assert error <= float(values[rank:].norm()) + 5e-3
    half = leading(matrix, (rank + 1) // 2)
    assert torch.equal(half.down, factors.down[:(rank + 1) // 2])
    assert torch.equal(half.up, factors.up[:, :(rank + 1) // 2])
