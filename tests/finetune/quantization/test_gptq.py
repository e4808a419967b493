"""GPTQ's codes: against all combinations on a small case, plain rounding where inputs don't mix, and every backend."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qra_bo.finetune.quantization.base import Grid
from qra_bo.finetune.quantization.rounding import Inputs, compensated_codes


def make_grid(out: int, inp: int, levels: int, seed: int = 0) -> Grid:
    draw = torch.Generator().manual_seed(seed)
    scale = torch.rand(out, inp, generator=draw) * 0.2 + 0.2
    return Grid(torch.arange(levels, dtype=torch.float32), scale, -scale * (levels - 1) / 2)


def mixed_moments(inp: int, tokens: int, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, inp, generator=draw) @ torch.randn(inp, inp, generator=draw)
    return rows.T @ rows


def lost(weight: Tensor, values: Tensor, moments: Tensor) -> float:
    error = (weight - values).double()
    return float(((error @ moments.double()) * error).sum())


def test_two_columns_are_rounded_as_by_hand() -> None:
    # M = [[2, 1], [1, 1]]: rounding the first column by e moves the best second weight by e M12 / M22 = e.
    moments = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    grid = Grid(torch.tensor([-1.0, 0.0, 1.0]), torch.ones(1, 2), torch.zeros(1, 2))
    weight = torch.tensor([[0.4, 0.3]])  # nearest: 0, 0; the first loses 0.4, so that the second wants 0.3 + 0.4 = 0.7
    assert grid.nearest(weight).tolist() == [[1, 1]]
    assert compensated_codes(weight, grid, Inputs.of(moments)).tolist() == [[1, 2]]


@settings(max_examples=25, deadline=None)
@given(out=st.integers(1, 6), inp=st.integers(1, 40), seed=st.integers(0, 99))
def test_unmixed_inputs_are_rounded_to_the_nearest(out: int, inp: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inp, generator=draw)
    grid = make_grid(out, inp, 4, seed)
    codes = compensated_codes(weight, grid, Inputs.of(torch.diag(torch.rand(inp, generator=draw) + 0.1)))
    torch.testing.assert_close(codes.long(), grid.nearest(weight))


def test_between_the_best_of_all_codes_and_the_nearest() -> None:
    moments, inp, levels = mixed_moments(5, 40), 5, 3
    draw = torch.Generator().manual_seed(3)
    weight, grid = torch.randn(20, inp, generator=draw) * 0.3, make_grid(20, inp, levels)
    every = torch.tensor(list(itertools.product(range(levels), repeat=inp)))
    found, nearest = compensated_codes(weight, grid, Inputs.of(moments)).long(), grid.nearest(weight)
    best = 0.0
    for i in range(len(weight)):
        row = Grid(grid.levels, grid.scale[i:i + 1], grid.offset[i:i + 1])
        best += min(lost(weight[i:i + 1], row.values(codes[None]), moments) for codes in every)
    ours, plain = lost(weight, grid.values(found), moments), lost(weight, grid.values(nearest), moments)
    assert best <= ours * (1 + 1e-9)
    assert ours < 0.75 * plain


def test_many_columns_lose_a_fraction_of_what_the_nearest_lose() -> None:
    moments, draw = mixed_moments(300, 1000), torch.Generator().manual_seed(4)
    weight, grid = torch.randn(16, 300, generator=draw) * 0.5, make_grid(16, 300, 8)
    ours = lost(weight, grid.values(compensated_codes(weight, grid, Inputs.of(moments)).long()), moments)
    assert ours < 0.5 * lost(weight, grid.values(grid.nearest(weight)), moments)


@pytest.mark.parametrize("moments", [torch.zeros(8, 8), torch.diag(torch.tensor([1.0, 0.0] * 4))])
def test_inputs_that_are_always_zero_do_no_harm(moments: Tensor) -> None:
    weight, grid = torch.linspace(-1, 1, 16).view(2, 8), make_grid(2, 8, 4)
    codes = compensated_codes(weight, grid, Inputs.of(moments))
    torch.testing.assert_close(codes.long(), grid.nearest(weight))


def test_a_group_without_a_scale_holds_its_offset() -> None:
    grid = Grid.of_groups(torch.arange(4), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.0]), 2, (2, 2))
    assert torch.isfinite(grid.values(grid.nearest(torch.full((2, 2), 3.0)))).all()
    assert grid.values(grid.nearest(torch.full((2, 2), 3.0))).tolist() == [[0.5, 0.5], [3.0, 3.0]]
