"""Integer grids: exact values, scales of least error, and codes that are read back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qra_bo.finetune.quantization import integer
from qra_bo.finetune.quantization.base import backend_of
from qra_bo.finetune.quantization.integer import IntegerBackend, candidates, search
from qra_bo.memory.formats import FORMATS, has_zeros, parse_format
from qra_bo.utils.errors import ModelError
from tests.conformance.quantizer import integer_codes, quantize, relative_error

CPU = torch.device("cpu")
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
    return relative_error(quantize(linear, parse_format(name), torch.float32).unpack(), weight)


@EVERY_KIND
def test_weights_are_the_exact_products(bits: int, symmetric: bool) -> None:
    fmt = parse_format(f"{'sym' if symmetric else 'int'}{bits}-g{(32, 64, 128)[bits % 3]}")
    backend = backend_of(fmt)

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
        unpack = {kind: backend.build(state, fmt, shape, None, kind).unpack() for kind in (torch.float32, dtype)}
        assert torch.equal(unpack[torch.float32].double(), exact)
        # A consumer that computes in 16 bits multiplies two exact factors: one rounding, the same.
        consumer = (codes.to(dtype) - zero.to(dtype)) * spread(scale, fmt.block).to(dtype)
        assert torch.equal(unpack[dtype], consumer)

    check()


@EVERY_KIND
@pytest.mark.parametrize(("kind", "weighted"), [("gaussian", False), ("heavy", False), ("heavy", True)])
def test_search_finds_the_best_candidate_and_codes(bits: int, symmetric: bool, kind: str, weighted: bool) -> None:
    groups = matrix(kind, (24, 32), bits)
    roots = matrix("heavy", (24, 32), bits + 9).abs() if weighted else torch.ones(24, 32)
    codes, scale, zero = search(groups, bits, symmetric, roots if weighted else None)
    scales, zeros = candidates(groups, bits, symmetric)
    levels = torch.arange(1 << bits).double()
    for g, weights in enumerate(groups.double()):
        def nearest(s: Tensor, z: Tensor | float, weights: Tensor = weights, root: Tensor = roots[g]) -> Tensor:
            return (((levels - z) * s - weights[:, None]).abs().amin(dim=1) * root).norm()

        errors = [float(nearest(scales[c, g].double(), float(1 << bits - 1) if zeros is None else zeros[c, g].double()))
                  for c in range(len(scales))]
        found = (((codes[g].double() - zero[g]) * scale[g].double() - weights) * roots[g]).norm()
        assert float(found) == pytest.approx(min(errors), rel=1e-5)


@EVERY_KIND
@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
def test_few_factors_lose_little_to_a_dense_scan(bits: int, symmetric: bool, kind: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> float:
        codes, scale, zero = search(groups, bits, symmetric)
        return relative_error((codes - zero) * scale, groups)

    groups, up = matrix(kind).view(-1, 64), torch.linspace(0.3, 1.3, 400).tolist()
    few = error()
    monkeypatch.setattr(integer, "factors", lambda *_: [*up, *(-f for f in up)] if symmetric else up)
    assert few <= error() * (1.005 if bits <= 4 else 1.025)


@EVERY_KIND
def test_scales_for_inputs_err_less_where_inputs_count(bits: int, symmetric: bool) -> None:
    fmt, weight = parse_format(f"{'sym' if symmetric else 'int'}{bits}-g64"), matrix("gaussian")
    weight[:, [3, 100, 101]], weight[[7, 40]] = 8 * weight[:, [3, 100, 101]], 8 * weight[[7, 40]]  # planted outliers
    importance = matrix("heavy", (1, 256), 5)[0].square()
    importance[[3, 100, 101]] = 1e-4 * importance.mean()
    backend, lost = IntegerBackend(), list[Tensor]()
    for state in (backend.pack(weight, fmt, CPU), backend.pack_for_inputs(weight, fmt, CPU, importance)):
        error = backend.build(state, fmt, (64, 256), None, torch.float32).unpack() - weight
        lost.append((error.square() * importance).view(64, -1, 64).sum(dim=2))
    assert bool((lost[1] <= lost[0] * (1 + 1e-5)).all())
    assert float(lost[1].sum()) < (0.8 if bits <= 4 else 0.95) * float(lost[0].sum())


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


@EVERY_KIND
def test_a_cpu_and_a_device_choose_the_same_scales(bits: int, symmetric: bool) -> None:
    groups = matrix("heavy", (200, 32), bits)
    groups[3] = 0.0
    roots = matrix("heavy", (8, 32), 1).abs()
    scales, zeros = candidates(groups, bits, symmetric)
    lowest = torch.full_like(scales, -(1 << bits - 1)) if zeros is None else -zeros
    there, here = (best(groups, roots.repeat(25, 1), scales, lowest, (1 << bits) - 1)
                   for best in (integer._best_on_device, integer._best_on_host))
    assert torch.equal(here, there)
