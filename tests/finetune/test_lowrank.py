"""Low-rank factors and alternating decompositions, against plain singular value decompositions and PEFT."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qra_bo.finetune.adapters.lowrank import leading, low_rank_first, nearest_for_inputs, quantised_first
from qra_bo.finetune.quantization.base import State, backend_of, packed
from qra_bo.memory.formats import parse_format
from tests.conformance.quantizer import make_linear

CPU = torch.device("cpu")


def requantise_in(fmt: str, shape: tuple[int, int]) -> object:
    form = parse_format(fmt)

    def requantise(matrix: Tensor) -> tuple[State, Tensor]:
        state = backend_of(form).pack(matrix, form, CPU)
        return state, packed(backend_of(form).build(state, form, shape, None, torch.float32)).unpack()

    return requantise


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


@pytest.mark.parametrize("balance", ["even", "kaiming"])
def test_adapter_has_the_product_and_the_balance(balance: str) -> None:
    factors = leading(torch.randn(20, 12, generator=torch.Generator().manual_seed(1)), 5)
    down, up = factors.as_adapter(2.0, balance)  # type: ignore[arg-type]
    torch.testing.assert_close(2.0 * up @ down, factors.product())
    norms = torch.linalg.vector_norm(down, dim=1)
    expected = torch.full((5,), 3 ** -0.5) if balance == "kaiming" else torch.linalg.vector_norm(up, dim=0)
    torch.testing.assert_close(norms, expected)


def test_nothing_to_correct_gives_finite_factors() -> None:
    for balance in ("even", "kaiming"):
        down, up = leading(torch.zeros(6, 4), 3).as_adapter(2.0, balance)  # type: ignore[arg-type]
        assert torch.isfinite(down).all()
        assert float((up @ down).abs().max()) < 1e-18


@pytest.mark.parametrize("fmt", ["nf4", "int8", "hqq2", "hqq3", "hqq5"])
def test_alternating_comes_closer_than_one_quantisation(fmt: str) -> None:
    weight = make_linear(96, 128).weight
    requantise = requantise_in(fmt, (96, 128))
    _, dense = requantise(weight)  # type: ignore[operator]
    plain = float((weight - dense).norm() / weight.norm())
    for how in (quantised_first, low_rank_first):
        found = how(weight, requantise, 8, 5)  # type: ignore[arg-type]
        reached = min(found.errors)
        assert reached < plain
        dense = packed(backend_of(parse_format(fmt)).build(found.state, parse_format(fmt), (96, 128), None,
                                                           torch.float32)).unpack()
        error = float((weight - dense - found.factors.product()).norm() / weight.norm())
        expected = found.errors[-1] if how is quantised_first else reached
        assert error == pytest.approx(expected, rel=1e-5)
    assert low_rank_first(weight, requantise, 8, 20).errors[:-1] == tuple(  # type: ignore[arg-type]
        sorted(low_rank_first(weight, requantise, 8, 20).errors[:-1], reverse=True))  # type: ignore[arg-type]


def test_one_alternation_of_loftq_is_the_residuals_decomposition() -> None:
    weight = make_linear(64, 128).weight
    requantise = requantise_in("hqq3", (64, 128))
    found = quantised_first(weight, requantise, 4, 1)  # type: ignore[arg-type]
    _, dense = requantise(weight)  # type: ignore[operator]
    assert torch.equal(found.factors.product(), leading(weight - dense, 4).product())


def test_pissa_equals_pefts() -> None:
    from peft import LoraConfig, get_peft_model

    linear = make_linear(48, 64)
    with torch.random.fork_rng(devices=[]):
        wrapped = get_peft_model(torch.nn.Sequential(linear), LoraConfig(
            r=6, lora_alpha=12, target_modules=["0"], init_lora_weights="pissa"))
    layer = wrapped.base_model.model[0]
    theirs = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    weight = make_linear(48, 64).weight
    torch.testing.assert_close(leading(weight, 6).product(), theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_loftq_equals_pefts_on_cuda() -> None:
    from peft.utils.loftq_utils import loftq_init

    if not torch.cuda.is_available():
        pytest.skip("PEFT's LoftQ needs CUDA")
    weight, form = make_linear(128, 256).weight.cuda(), parse_format("nf4-nodq")

    def requantise(matrix: Tensor) -> tuple[State, Tensor]:
        state = backend_of(form).pack(matrix, form, weight.device)
        return state, packed(backend_of(form).build(state, form, (128, 256), None, torch.float32)).unpack()

    ours = quantised_first(weight, requantise, 8, 3)
    dense, down, up = loftq_init(weight, 4, 8, 3)
    theirs = float((weight - dense - up @ down).norm() / weight.norm())
    assert ours.errors[-1] == pytest.approx(theirs, rel=0.02)


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
