"""Integer grids: exact values, scales of least error, and codes that are read back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qra_bo.finetune.quantization import integer_scales
from qra_bo.finetune.quantization.base import backend_of, packed
from qra_bo.finetune.quantization.integer_scales import candidates, search
from qra_bo.memory.formats import FORMATS, has_zeros, metadata_bytes, parse_format, weight_bytes
from qra_bo.utils.errors import ModelError, SpaceError
from tests.conformance.quantizer import integer_codes, quantize, relative_error

CPU = torch.device("cpu")
INTEGER = sorted(name for name, fmt in FORMATS.items() if fmt.backend == "integer")
KINDS = sorted({(fmt.bits, not has_zeros(fmt)) for fmt in FORMATS.values() if fmt.backend == "integer"})
EVERY_KIND = pytest.mark.parametrize(("bits", "symmetric"), KINDS,
                                     ids=[f"{'sym' if symmetric else 'int'}{bits}" for bits, symmetric in KINDS])


def matrix(kind: str, shape: tuple[int, int] = (64, 256), seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=draw).mul_(0.05)
    if kind == "gaussian":
        return normal
    chi = torch.randn((4, *shape), generator=draw).square_().sum(dim=0)  # Student's t of 4 degrees of freedom
    return normal.div_((chi / 4).sqrt_())


def spread(values: Tensor, group: int) -> Tensor:
    return values.float().repeat_interleave(group, dim=1)


def error_of(name: str, weight: Tensor) -> float:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return relative_error(packed(quantize(linear, parse_format(name), torch.float32)).unpack(), weight)


def absmax_error(weight: Tensor, bits: int, group: int, symmetric: bool) -> float:
    """Error of scales that reach the largest weight of a group."""
    groups, top = weight.view(-1, group), (1 << bits) - 1
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    middle = torch.tensor(float(1 << bits - 1))
    scale = groups.abs().amax(1, keepdim=True) / (middle - 1) if symmetric else (high - low) / top
    zero = middle if symmetric else (-low / scale).round()
    codes = (groups / scale + zero).round().clamp(0, top)
    return relative_error(((codes - zero) * scale).view_as(weight), weight)


@pytest.mark.parametrize(("name", "shape", "weights", "metadata"), [
    ("sym3-g64", (4096, 4096), 2**24 * 3 // 8, 2 * 2**18),  # 3.25 bits a weight
    ("sym2-g128", (256, 128), 256 * 32, 2 * 256), ("sym8-g32", (5, 64), 320, 2 * 10),
    ("int4-g32", (8, 64), 256, 3 * 16), ("int4-g64", (4096, 4096), 2**23, 3 * 2**18),
    # 3 groups: one byte of four codes of 2 bits and one of eight of 1 bit, padded to 8 groups, for each of 64 columns.
    ("int3-g64", (3, 64), (2 + 1) * 64, 3 * 3),
])
def test_bytes_by_hand(name: str, shape: tuple[int, int], weights: int, metadata: int) -> None:
    assert (weight_bytes(parse_format(name), *shape), metadata_bytes(parse_format(name), *shape)) == (weights, metadata)


def test_rows_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(SpaceError, match="sym4-g128 packs columns in multiples of 128; a 64 x 576 matrix has 576"):
        weight_bytes(parse_format("sym4-g128"), 64, 576)


@pytest.mark.parametrize("name", INTEGER)
def test_weights_are_the_exact_products(name: str) -> None:
    fmt, backend = parse_format(name), backend_of(parse_format(name))

    @settings(max_examples=10, deadline=None)
    @given(rows=st.integers(1, 20), groups=st.integers(1, 3), seed=st.integers(0, 99),
           size=st.sampled_from([1e-5, 0.02, 1.0, 3000.0]), dtype=st.sampled_from([torch.bfloat16, torch.float16]))
    def check(rows: int, groups: int, seed: int, size: float, dtype: torch.dtype) -> None:
        shape = rows, groups * fmt.block
        state = backend.pack(size * matrix("heavy", shape, seed), fmt, CPU)
        scale, codes = state["scale"], integer_codes(state, fmt, shape)
        assert scale.dtype == torch.bfloat16
        assert scale.shape == (rows, groups)
        assert codes.dtype == torch.uint8
        assert torch.equal(scale.half().bfloat16(), scale)
        assert float(scale.abs().min()) >= torch.finfo(torch.float16).tiny
        zero = spread(state["zero"], fmt.block) if "zero" in state else torch.tensor(float(1 << fmt.bits - 1))
        exact = (codes.double() - zero.double()) * spread(scale, fmt.block).double()
        unpack = {kind: packed(backend.build(state, fmt, shape, None, kind)).unpack()
                  for kind in (torch.float32, dtype)}
        assert torch.equal(unpack[torch.float32].double(), exact)
        # A consumer that computes in 16 bits multiplies two exact factors: one rounding, the same.
        consumer = (codes.to(dtype) - zero.to(dtype)) * spread(scale, fmt.block).to(dtype)
        assert torch.equal(unpack[dtype], consumer)

    check()


@EVERY_KIND
@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
def test_search_finds_the_best_candidate_and_codes(bits: int, symmetric: bool, kind: str) -> None:
    groups = matrix(kind, (24, 32), bits)
    codes, scale, zero = search(groups, bits, symmetric)
    scales, zeros = candidates(groups, bits, symmetric)
    levels = torch.arange(1 << bits).double()
    for g, weights in enumerate(groups.double()):
        def nearest(s: Tensor, z: Tensor | float, weights: Tensor = weights) -> Tensor:
            return ((levels - z) * s - weights[:, None]).abs().amin(dim=1).square().sum().sqrt()

        errors = [float(nearest(scales[c, g].double(), float(1 << bits - 1) if zeros is None else zeros[c, g].double()))
                  for c in range(len(scales))]
        found = ((codes[g].double() - zero[g]) * scale[g].double() - weights).norm()
        assert float(found) == pytest.approx(min(errors), rel=1e-5)


@EVERY_KIND
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
def test_error_is_below_that_of_scales_by_range(bits: int, symmetric: bool, group: int, kind: str) -> None:
    weight = matrix(kind)
    name = f"{'sym' if symmetric else 'int'}{bits}-g{group}"
    assert error_of(name, weight) < absmax_error(weight, bits, group, symmetric)


@EVERY_KIND
@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
def test_few_factors_lose_little_to_a_dense_scan(bits: int, symmetric: bool, kind: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> float:
        codes, scale, zero = search(groups, bits, symmetric)
        return relative_error((codes - zero) * scale, groups)

    groups, up = matrix(kind).view(-1, 64), torch.linspace(0.3, 1.3, 400).tolist()
    few = error()
    monkeypatch.setattr(integer_scales, "factors", lambda *_: [*up, *(-f for f in up)] if symmetric else up)
    assert few <= error() * (1.005 if bits <= 4 else 1.025)


@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
@pytest.mark.parametrize("bits", [2, 3])
def test_error_is_below_that_of_hqq(kind: str, bits: int) -> None:
    weight = matrix(kind)
    hqq = error_of(f"hqq{bits}", weight)
    assert error_of(f"int{bits}-g64", weight) < hqq
    assert error_of(f"sym{bits}-g64", weight) < hqq * (1.1 if kind == "heavy" else 1.0)


@pytest.mark.parametrize("name", INTEGER)
def test_codes_round_trip_through_the_planes(name: str) -> None:
    fmt, shape = parse_format(name), (7, 256)  # groups do not fill the last words
    backend, draw = backend_of(fmt), torch.Generator().manual_seed(1)
    state = backend.pack(matrix("gaussian", shape), fmt, CPU)
    codes = torch.randint(1 << fmt.bits, shape, generator=draw, dtype=torch.uint8)
    other = backend.recoded(state, fmt, codes)
    negative = spread(state["scale"], fmt.block) < 0
    assert negative.any() == (name.startswith("sym"))
    expected = torch.where(negative, (1 << fmt.bits) - 1 - codes, codes)  # a grid's levels ascend
    assert torch.equal(integer_codes(other, fmt, shape), expected)


@pytest.mark.parametrize("name", ["sym4-g32", "int4-g32"])
def test_exact_grids_are_reproduced(name: str) -> None:
    fmt, shape, draw = parse_format(name), (16, 64), torch.Generator().manual_seed(2)
    codes = torch.randint(16, shape, generator=draw).float()
    codes[:, ::32], codes[:, 1::32] = 0.0, 15.0  # the whole range is used
    weight = (codes - (8 if name.startswith("sym") else 5)) * 2.0 ** -7
    assert error_of(name, weight) == 0.0
    assert torch.equal(integer_codes(backend_of(fmt).pack(weight, fmt, CPU), fmt, shape).float(), codes)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e8])
def test_weights_beyond_the_range_of_fp16_scales_are_refused(value: float) -> None:
    weight = matrix("gaussian", (8, 64))
    weight[3, 5] = value
    with pytest.raises(ModelError, match="sym4-g64 can't store a weight matrix"):
        backend_of(parse_format("sym4-g64")).pack(weight, parse_format("sym4-g64"), CPU)
