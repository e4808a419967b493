"""Low-rank factors against plain singular value decompositions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.finetune.adapters.lowrank import leading, nearest_for_inputs


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
    assert torch.equal(half.down, factors.first((rank + 1) // 2).down)
    assert torch.equal(half.up, factors.first((rank + 1) // 2).up)


def test_adapter_has_the_product_and_the_length_of_loras_own() -> None:
    for matrix in (torch.randn(20, 12, generator=torch.Generator().manual_seed(1)), torch.zeros(20, 12)):
        factors = leading(matrix, 5)
        down, up = factors.as_adapter(2.0)
        torch.testing.assert_close(2.0 * up @ down, factors.product())
        if matrix.any():
            torch.testing.assert_close(torch.linalg.vector_norm(down, dim=1), torch.full((5,), 3 ** -0.5))
        assert torch.isfinite(down).all()


def error_and_root(out: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    mixed = torch.randn(4 * width, width, generator=draw, dtype=torch.float64) @ torch.randn(
        width, width, generator=draw, dtype=torch.float64)
    return torch.randn(out, width, generator=draw), torch.linalg.cholesky(mixed.t() @ mixed).float()


@pytest.mark.parametrize(("out", "width"), [(5, 9), (9, 5)])
def test_weighted_start_is_optimal_and_nested(out: int, width: int) -> None:
    error, root = error_and_root(out, width)
    found = nearest_for_inputs(error, root, 5)
    assert torch.allclose(found.product(), error, atol=1e-4)  # full rank: nothing is left
    assert torch.allclose(torch.linalg.vector_norm(found.down, dim=1), torch.ones(len(found.down)), atol=1e-5)
    for rank in (1, 3):
        first = found.first(rank)
        assert torch.allclose(first.product(), nearest_for_inputs(error, root, rank).product(), atol=1e-4)
        left = torch.linalg.svdvals((error @ root).double())[rank:].square().sum()
        assert float(((error - first.product()) @ root).double().square().sum()) == pytest.approx(float(left), rel=1e-3)
        draw = torch.Generator().manual_seed(5)
        for size in (1e-3, 1e-2, 1e-1):
            other = (first.up + size * torch.randn(first.up.shape, generator=draw)) @ (
                first.down + size * torch.randn(first.down.shape, generator=draw))
            assert float(((error - other) @ root).double().square().sum()) > float(left)


def test_weighted_start_of_equal_inputs_is_the_plain_one() -> None:
    error, _ = error_and_root(6, 8)
    u, s, v = torch.linalg.svd(error)
    assert torch.allclose(nearest_for_inputs(error, torch.eye(8), 2).product(), u[:, :2] * s[:2] @ v[:2], atol=1e-5)
