"""Our products against the libraries' own numbers, and the traps of the libraries that the backends avoid."""

import pytest
import torch
from torch import nn

from qra_bo.finetune.quantization import planes
from qra_bo.finetune.quantization.base import PackedLinear, backend_of
from qra_bo.memory.formats import parse_format
from tests.conformance.quantizer import make_linear, quantize, relative_error


def build(name: str, linear: nn.Linear, dtype: torch.dtype = torch.bfloat16) -> PackedLinear:
    fmt = parse_format(name)
    return quantize(linear, fmt, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("double", [True, False])
def test_nf4_equals_the_librarys_dequantisation(dtype: torch.dtype, double: bool) -> None:
    from bitsandbytes import functional as F
    linear = make_linear(48, 192)
    codes, state = F.quantize_4bit(linear.weight.data, blocksize=64, compress_statistics=double, quant_type="nf4")
    layer = build("nf4" if double else "nf4-nodq", linear, dtype)
    state.dtype = dtype
    assert torch.equal(layer.unpack(), F.dequantize_4bit(codes, state))


def test_nf4_is_right_where_the_librarys_kernel_is_not() -> None:
    """Rows of one and a half blocks: bitsandbytes' CPU kernel may read the scale of the wrong block."""
    linear = make_linear(64, 96)
    linear.weight.mul_(torch.logspace(-2, 0, 64 * 96).view(64, 96))  # neighbouring blocks differ much in scale
    assert relative_error(build("nf4", linear, torch.float32).unpack(), linear.weight) < 0.12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_equals_the_librarys_training_weight(dtype: torch.dtype) -> None:
    from bitsandbytes.functional import int8_vectorwise_quant
    linear = make_linear(300, 1000)  # several tiles of rows
    codes, scale, _ = int8_vectorwise_quant(linear.weight.data.half())
    layer = build("int8", linear, dtype)
    assert torch.equal(layer.unpack(), codes.to(dtype).mul_(scale.unsqueeze(1).mul(1.0 / 127.0)))


def test_int8_gives_the_library_rows_that_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes import functional as F
    given: list[torch.Tensor] = []
    quantise = F.int8_vectorwise_quant
    monkeypatch.setattr(F, "int8_vectorwise_quant", lambda weight: given.append(weight) or quantise(weight))
    weight, fmt = make_linear(48, 64).weight.detach(), parse_format("int8")
    states = [backend_of(fmt).pack(w, fmt, torch.device("cpu")) for w in (weight, weight.t().contiguous().t())]
    assert [w.is_contiguous() for w in given] == [True, True]
    assert all(torch.equal(first, second) for first, second in zip(*(s.values() for s in states), strict=True))


@pytest.mark.parametrize("name", ["hqq2", "hqq3", "hqq4", "hqq8", "hqq3-g32", "hqq2-g128"])
def test_hqq_equals_the_librarys_dequantisation(name: str) -> None:
    from hqq.core.quantize import Quantizer
    fmt, layer = parse_format(name), build(name, make_linear(96, 256), torch.float32)
    state, packing = layer.packed_state(), Quantizer.bit_to_packing[fmt.bits]
    meta = {"nbits": fmt.bits, "group_size": fmt.block, "shape": torch.Size((96, 256)), "axis": 1,
            "packing": packing, "unpack_view_dtype": Quantizer.unpack_view_dtype[packing], "view_as_float": False,
            "quant_scale": False, "quant_zero": False, "compute_dtype": torch.float32,
            "scale": state["scale"], "zero": state["zero"]}
    exact = Quantizer.dequantize(state["codes"], meta)
    assert torch.equal(layer.unpack(), exact)
    assert torch.equal(build(name, make_linear(96, 256)).unpack(), exact.to(torch.bfloat16))


@pytest.mark.parametrize("name", ["hqq5", "hqq6", "hqq5-g128"])
def test_two_planes_hold_what_the_library_keeps_in_bytes(name: str) -> None:
    from hqq.core.quantize import Quantizer
    linear, fmt = make_linear(96, 256), parse_format(name)
    codes, _ = Quantizer.quantize(linear.weight, nbits=fmt.bits, group_size=fmt.block, axis=1, bitpack=True,
                                  device="cpu")
    assert codes.numel() == linear.weight.numel()  # a byte each, whatever the bits
    layer = build(name, linear, torch.float32)
    state = layer.packed_state()
    exact = (codes.float() - state["zero"].float()) * state["scale"].float()
    # The solver's stopping rule sees runs of groups here, the whole matrix there: codes on an edge may differ.
    same = layer.unpack() == exact.view(96, 256)
    assert same.float().mean() > 0.99
    assert sum(t.numel() for key, t in state.items() if key.endswith("codes")) == 96 * 256 * fmt.bits // 8


@pytest.mark.parametrize("name", ["hqq3", "hqq5", "sym3-g64", "int2-g64", "sym8-g64"])
def test_tiles_cover_a_matrix_of_several(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = build(name, make_linear(64, 256))
    whole = layer.unpack()
    monkeypatch.setattr(planes, "tile_numel", lambda device: 7 * 64)
    assert torch.equal(layer.unpack(), whole)


def test_16_bits_share_a_half_precision_original() -> None:
    half, full = make_linear(64, 64, dtype=torch.bfloat16), make_linear(64, 64)
    assert build("fp16", half).weight.data_ptr() == half.weight.data_ptr()
    stored = build("fp16", full, torch.float32)
    assert stored.weight.dtype == torch.float16
    assert stored.unpack().dtype == torch.float32
