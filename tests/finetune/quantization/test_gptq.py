"""GPTQ's codes: against all combinations on a small case, plain rounding where inputs don't mix, and every backend."""

import itertools
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qra_bo.finetune.quantization import gptq
from qra_bo.finetune.quantization import moments as moments_module
from qra_bo.finetune.quantization.base import Grid, LevelBackend, backend_of
from qra_bo.finetune.quantization.gptq import compensated_codes
from qra_bo.finetune.quantization.moments import Inputs, second_moments, shrink
from qra_bo.memory.formats import parse_format
from qra_bo.utils.errors import ModelError
from tests.conformance.quantizer import grid_values, levels_of, make_linear, nearest_codes, scale_and_offset


def make_grid(out: int, inp: int, levels: int, seed: int = 0) -> Grid:
    draw = torch.Generator().manual_seed(seed)
    scale = torch.rand(out, inp, generator=draw) * 0.2 + 0.2
    return Grid(range(levels), scale, -scale * (levels - 1) / 2, 1, inp)


def codes_of(weight: Tensor, grid: Grid, moments: Tensor) -> Tensor:
    (codes,) = compensated_codes([(weight, grid)], Inputs.of(moments))
    return codes


def column_by_column(weight: Tensor, grid: Grid, inputs: Inputs) -> Tensor:
    """The paper's algorithm for one matrix, in rows."""
    levels, factor, n = levels_of(grid), inputs.factor, weight.shape[1]
    scale, offset = (t[:, inputs.order] for t in scale_and_offset(grid, len(weight)))
    rest, codes = weight.float()[:, inputs.order], torch.empty(weight.shape, dtype=torch.uint8)
    for first in range(0, n, gptq.BLOCK):
        last = min(first + gptq.BLOCK, n)
        errors = torch.empty(len(weight), last - first)
        for j in range(first, last):
            position = torch.where(scale[:, j] > 0, (rest[:, j] - offset[:, j]) / scale[:, j], 0.0)
            code = torch.bucketize(position.contiguous(), (levels[1:] + levels[:-1]) / 2)
            codes[:, j] = code
            errors[:, j - first] = (rest[:, j] - (levels[code] * scale[:, j] + offset[:, j])) / factor[j, j]
            rest[:, j:last] -= errors[:, j - first, None] * factor[j, None, j:last]
        rest[:, last:] -= errors @ factor[first:last, last:]
    return codes[:, torch.argsort(inputs.order)]


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
    grid = Grid(torch.tensor([-1.0, 0.0, 1.0]), torch.ones(1), torch.zeros(1), 2, 2)
    weight = torch.tensor([[0.4, 0.3]])  # nearest: 0, 0; the first loses 0.4, so that the second wants 0.3 + 0.4 = 0.7
    assert nearest_codes(grid, weight).tolist() == [[1, 1]]
    assert codes_of(weight, grid, moments).tolist() == [[1, 2]]


@settings(max_examples=25, deadline=None)
@given(out=st.integers(1, 6), inp=st.integers(1, 40), seed=st.integers(0, 99))
def test_unmixed_inputs_are_rounded_to_the_nearest(out: int, inp: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inp, generator=draw)
    grid = make_grid(out, inp, 4, seed)
    codes = codes_of(weight, grid, torch.diag(torch.rand(inp, generator=draw) + 0.1))
    torch.testing.assert_close(codes.long(), nearest_codes(grid, weight))


def test_between_the_best_of_all_codes_and_the_nearest() -> None:
    moments, inp, levels = mixed_moments(5, 40), 5, 3
    draw = torch.Generator().manual_seed(3)
    weight, grid = torch.randn(20, inp, generator=draw) * 0.3, make_grid(20, inp, levels)
    every = torch.tensor(list(itertools.product(range(levels), repeat=inp)))
    found, rounded = codes_of(weight, grid, moments).long(), nearest_codes(grid, weight)
    best = 0.0
    for i in range(len(weight)):
        row = Grid(grid.levels, grid.scale[i], grid.offset[i], 1, inp)
        best += min(lost(weight[i:i + 1], grid_values(row, codes[None]), moments) for codes in every)
    ours, plain = lost(weight, grid_values(grid, found), moments), lost(weight, grid_values(grid, rounded), moments)
    assert best <= ours * (1 + 1e-9)
    assert ours < 0.75 * plain


@pytest.mark.parametrize("moments", [torch.zeros(8, 8), torch.diag(torch.tensor([1.0, 0.0] * 4))])
def test_inputs_that_are_always_zero_do_no_harm(moments: Tensor) -> None:
    weight, grid = torch.linspace(-1, 1, 16).view(2, 8), make_grid(2, 8, 4)
    codes = codes_of(weight, grid, moments)
    torch.testing.assert_close(codes.long(), nearest_codes(grid, weight))


def test_a_group_without_a_scale_holds_its_offset() -> None:
    grid = Grid(range(4), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.0]), 2, 2)
    codes = codes_of(torch.full((2, 2), 3.0), grid, torch.eye(2))
    assert grid_values(grid, codes).tolist() == [[0.5, 0.5], [3.0, 3.0]]


@pytest.fixture(params=["cpu", "none"], ids=["compiled", "by torch's operators"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose codes with both loops."""
    monkeypatch.setattr(gptq, "HOST", request.param)


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("rows", [7, 2048])
def test_stacked_matrices_and_formats_get_the_codes_of_each_alone(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "STACKED_ROWS", rows)
    monkeypatch.setattr(gptq, "STACKED_NUMEL", rows * 192)
    inp, device = 192, torch.device("cpu")
    moments, stack = mixed_moments(inp, 400), []
    for seed, out in enumerate((16, 40), start=2):  # which have no weight half-way between two levels
        weight = make_linear(out, inp, seed=seed).weight
        for fmt in map(parse_format, ("hqq2", "nf4", "int8", "hqq3-g128", "hqq5", "hqq8")):
            backend = backend_of(fmt)
            assert isinstance(backend, LevelBackend)
            stack.append((weight, backend.grid(backend.pack(weight, fmt, device), fmt, (out, inp))))
    inputs = Inputs.of(moments)
    for (weight, grid), codes in zip(stack, compensated_codes(stack, inputs), strict=True):
        assert torch.equal(codes, column_by_column(weight, grid, inputs))


def test_factor_in_fp32_loses_no_more_than_in_fp64() -> None:
    moments, draw = mixed_moments(300, 1000), torch.Generator().manual_seed(4)
    weight, grid = torch.randn(16, 300, generator=draw) * 0.5, make_grid(16, 300, 8)
    losses = []
    for dtype in (torch.float32, torch.float64):
        order, factor, failed = moments_module._factored(moments.to(dtype, copy=True))
        assert not failed
        (codes,) = compensated_codes([(weight, grid)], Inputs(order, factor.float()))
        losses.append(lost(weight, grid_values(grid, codes), moments))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


class _Alive(TorchDispatchMode):
    """Counts the matrices of ``n x n`` that operators made and that are alive at once."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.most, self._made = n, 0, list[weakref.ref[Tensor]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in () if func.is_view else made if isinstance(made, tuple) else (made,):
            square = isinstance(tensor, Tensor) and tensor.shape == (self.n, self.n)
            if square and not any(tensor is known() for known in self._made):
                self._made.append(weakref.ref(tensor))
        self.most = max(self.most, sum(known() is not None for known in self._made))
        return made


def test_two_matrices_are_alive_at_once_while_moments_are_factored() -> None:
    moments = mixed_moments(200, 400)
    before = moments.clone()
    with _Alive(200) as alive:
        Inputs.of(moments)
    assert alive.most == 2
    assert torch.equal(moments, before)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_factor_that_fails_in_fp32_is_made_in_fp64(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    factored, given = moments_module._factored, list[torch.dtype]()

    def fails_at_first(moments: Tensor, by_moment: bool) -> tuple[Tensor, Tensor, bool]:
        given.append(moments.dtype)
        return *factored(moments, by_moment)[:2], len(given) <= failing

    monkeypatch.setattr(moments_module, "_factored", fails_at_first)
    with nullcontext() if failing == 1 else pytest.raises(ModelError, match="not positive definite"):
        Inputs.of(torch.eye(2))
    assert given == [torch.float32, torch.float64]


def test_indefinite_moments_are_refused() -> None:
    with pytest.raises(ModelError, match="not positive definite"):
        Inputs.of(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


@pytest.mark.parametrize("n", [1, 128, 129, 300])
@pytest.mark.parametrize("by_moment", [True, False])
def test_the_factor_is_that_of_the_inverse_moments(n: int, by_moment: bool) -> None:
    moments = mixed_moments(n, 3 * n + 1).double()
    order, factor, _ = moments_module._factored(moments, by_moment)
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(n)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped[order][:, order]), upper=True)
    torch.testing.assert_close(factor, expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(factor, factor.triu())


def test_importance_is_what_later_inputs_do_not_predict() -> None:
    moments = mixed_moments(6, 30)
    inputs = Inputs.of(moments)
    damped = moments.double() + 0.01 * moments.diagonal().mean() * torch.eye(6)
    for place, column in enumerate(inputs.order):
        later = inputs.order[place + 1:]
        known = damped[column, later] @ torch.linalg.solve(damped[later][:, later], damped[later, column])
        assert float(inputs.importance[column]) == pytest.approx(float(damped[column, column] - known), rel=1e-3)


@pytest.mark.parametrize(("tokens", "left"), [(0, 0), (16, 0), (32, 0), (128, 0.75), (3200, 0.99)])
def test_correlations_lose_the_share_that_is_chance(tokens: int, left: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "COLUMNS", 2)
    moments = 7 * torch.eye(3)
    moments[0, 1] = moments[1, 0] = 7 * 0.75 ** 0.5  # a squared correlation of 3/4, of three pairs: 1/4 in the mean
    found = shrink(moments.clone(), tokens)
    assert float(found[0, 1] / found[0, 0]) == pytest.approx(left * 0.75 ** 0.5, abs=1e-3)
    assert torch.equal(found.diagonal(), found[0, 0].expand(3))
    assert torch.equal(found.fill_diagonal_(7), moments)


def test_an_input_above_the_mean_gets_as_much_as_the_mean_one() -> None:
    moments = torch.tensor([[100.0, 1.0, 0.0], [1.0, 4.0, 1.0], [0.0, 1.0, 1.0]])
    added = (shrink(moments.clone(), 1000) - moments).diagonal()
    assert added[0] == pytest.approx(35 / 4 * added[1])
    assert added[1] == pytest.approx(4 * added[2])
    assert 0 < added[2] < 1


def test_inputs_without_correlations_keep_none() -> None:
    for moments in (torch.zeros(3, 3), torch.tensor([[5.0]])):
        assert torch.equal(shrink(moments.clone(), 100), moments)
    found = shrink(torch.diag(torch.tensor([1.0, 2.0, 0.0])), 100)
    assert found.diagonal().tolist() == [1001, 1002, 0]
    assert found.count_nonzero() == 2


def test_shrunk_moments_of_few_tokens_lose_less_on_others() -> None:
    draw, alike = torch.Generator().manual_seed(5), moments_module.ALIKE
    weight, mix = torch.randn(32, 96, generator=draw), torch.eye(96) + 0.1 * torch.randn(96, 96, generator=draw)
    seen = second_moments((torch.randn(200, 96, generator=draw) @ mix).repeat(alike, 1))
    grid, found = make_grid(32, 96, 4), list[float]()
    for moments in (seen, torch.diag(seen.diagonal()), shrink(seen.clone(), 200 * alike)):
        codes = codes_of(weight, grid, moments)
        found.append(lost(weight, grid_values(grid, codes), mix.T @ mix))
    assert found[2] < 0.97 * min(found[:2])


class OnDevice:
    """Stands for moments on a GPU, by what ``Inputs.of`` asks of them."""

    device = torch.device("meta")

    def __init__(self, moments: Tensor) -> None:
        self.moments = moments

    def float(self) -> "OnDevice":
        return self

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.moments.to(*args, **kwargs)


@pytest.mark.parametrize(("error", "handled"), [
    (torch.OutOfMemoryError("CUDA out of memory"), True), (RuntimeError("CUDA driver error: out of memory"), True),
    (RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"), True),
    (RuntimeError("a bug"), False)])
def test_a_device_without_room_has_moments_factored_on_the_host(error: Exception, handled: bool,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    factored, given = moments_module._factored, list[Any]()

    def fails_at_first(moments: Any, by_moment: bool) -> Any:
        given.append(moments)
        if len(given) == 1:
            raise error
        return factored(moments, by_moment)

    monkeypatch.setattr(moments_module, "_factored", fails_at_first)
    moments: Any = OnDevice(mixed_moments(8, 20))
    if not handled:
        with pytest.raises(RuntimeError, match="a bug"):
            Inputs.of(moments)
        return
    found = Inputs.of(moments)
    assert (given[0], given[1].dtype, given[1].device.type) == (moments, torch.float64, "cpu")
    assert (found.factor.shape, found.factor.dtype, found.factor.device) == ((8, 8), torch.float32, OnDevice.device)


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("seed", [0, 1])
def test_positions_between_two_levels_take_the_lower(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    middles = torch.arange(-130, 130) + 0.5
    weight = torch.stack([middles, torch.nextafter(middles, torch.tensor(9e9)),
                          torch.nextafter(middles, torch.tensor(-9e9)), torch.randn(260, generator=draw) * 100])
    for levels in (range(-127, 128), range(4), torch.sort(torch.randn(16, generator=draw))[0]):
        grid = Grid(levels, torch.ones(4), torch.zeros(4), 260, 260)
        assert torch.equal(codes_of(weight, grid, torch.eye(260)).long(), nearest_codes(grid, weight))
