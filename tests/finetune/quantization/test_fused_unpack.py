"""The fused kernel, in Triton's interpreter and compiled for GPUs, and the choice between it and plain operators."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qra_bo.finetune.quantization import fused_unpack, planes
from qra_bo.finetune.quantization.fused_unpack import unpacked
from qra_bo.memory.formats import parse_format
from tests.finetune.kernels import run_with_triton

INTERPRETED = """
import torch
from qra_bo.finetune.quantization.plane_kernel import fused_unpack
from qra_bo.finetune.quantization.planes import in_planes, words_of
from qra_bo.memory.formats import BACKENDS, FORMATS, Plane, planes_of
from qra_bo.space import StorageFormat
from tests.conformance.quantizer import make_linear, quantize

for fmt in FORMATS.values():
    if planes := planes_of(fmt):
        for height in (48, 17 if fmt.backend == "integer" else 64):  # 17 rows: the last words are not full
            layer = quantize(make_linear(height, 256), fmt, torch.float16)
            state = layer.packed_state()
            words, zero = words_of(state), state.get("zero", 1 << fmt.bits - 1)
            found = fused_unpack(words, planes, state["scale"], zero, fmt.block, torch.float16)
            assert torch.equal(found.view(height, 256), layer.unpack()), fmt.name
            if fmt.backend == "integer" and isinstance(zero, int):  # a run of rows of a larger matrix
                first = 5 * 256 // fmt.block
                rows = fused_unpack(words, planes, state["scale"][5:12], zero, fmt.block, torch.float16, first)
                assert torch.equal(rows.view(7, 256), layer.unpack()[5:12]), fmt.name

seven = StorageFormat("seven", "integer", 7, 64)
BACKENDS["integer"].planes[7] = (Plane(4, 2, 1), Plane(2, 4, 1), Plane(1, 8, 1))
codes = torch.randint(128, (13, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
words = words_of(in_planes(codes, seven))
found = fused_unpack(words, planes_of(seven), torch.ones(13, 1), 64, 64, torch.float32)
assert torch.equal(found, codes.float() - 64)
"""
COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from qra_bo.finetune.quantization.plane_kernel import BLOCK, unpack_kernel
from qra_bo.memory.formats import BACKENDS, Plane

METADATA = {"hqq": [("*fp16", "*fp16", 0)], "integer": [("*bf16", "*u8", 0), ("*bf16", "*bf16", 4)]}
METADATA["ordered"] = METADATA["integer"]
BACKENDS["integer"].planes[7] = (Plane(4, 2, 1), Plane(2, 4, 1), Plane(1, 8, 1))  # three, which no format has
for backend, known in BACKENDS.items():
    for bits, planes in known.planes.items():
        for scale, zero, middle in METADATA[backend]:
            upper, lower, lowest, *_ = [*planes, Plane(0, 1, 1), Plane(0, 1, 1)]
            word = "*i32" if upper.word_bytes == 4 else "*u8"
            types = {"upper": word, "lower": word, "lowest": word, "scale": scale, "zero": zero, "out": "*bf16",
                     "first": "i32", "numel": "i32", "upper_words": "i32", "lower_words": "i32", "lowest_words": "i32"}
            fixed = {"GROUP": 64, "UPPER_BITS": upper.bits, "UPPER_FIELDS": upper.per_word,
                     "LOWER_BITS": lower.bits, "LOWER_FIELDS": lower.per_word, "LOWEST_BITS": lowest.bits,
                     "LOWEST_FIELDS": lowest.per_word, "MIDDLE": middle, "BLOCK": BLOCK}
            source = ASTSource(unpack_kernel, {**types, **dict.fromkeys(fixed, "constexpr")}, fixed)
            for capability in (75, 80, 90):
                assert compile(source, GPUTarget("cuda", capability, 32)).asm["cubin"], (bits, capability)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("code", "interpret"), [(INTERPRETED, "1"), (COMPILED, "0")])
def test_kernel_has_the_bits_of_the_operators_and_compiles(code: str, interpret: str) -> None:
    run_with_triton(code, interpret)


def test_kernel_is_used_once_it_gave_the_bits_of_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_unpack, "compared", {})
    calls: list[str] = []

    def path(name: str) -> torch.Tensor:
        calls.append(name)
        return torch.ones(3)

    for _ in range(3):
        assert torch.equal(unpacked(("hqq2",), lambda: path("fused"), lambda: path("plain")), torch.ones(3))
    assert calls == ["plain", "fused", "fused", "fused"]


@pytest.mark.parametrize("problem", ["absent", "other bits", "no compiler"])
def test_operators_stand_in_for_a_kernel_that_fails(problem: str, monkeypatch: pytest.MonkeyPatch,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(fused_unpack, "compared", {})

    def fused() -> torch.Tensor:
        if problem == "absent":
            raise ModuleNotFoundError("No module named 'triton'")
        if problem == "no compiler":
            raise RuntimeError("Failed to find C compiler.\nSet CC")
        return torch.zeros(3)

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(unpacked(("hqq2",), fused, lambda: torch.ones(3)), torch.ones(3))
    (record,) = caplog.records
    said = {"absent": "No module named 'triton'", "other bits": "other numbers", "no compiler": "find C compiler."}
    assert said[problem] in record.getMessage()


def test_kernel_runs_on_the_device_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    current, used = [torch.device("cuda", 0)], list[torch.device]()

    @contextmanager
    def entered(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def kernel(*_args: Any) -> torch.Tensor:
        used.append(current[-1])
        return torch.zeros(2, 64)

    module: Any = SimpleNamespace(fused_unpack=kernel)
    scale: Any = SimpleNamespace(device=torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setitem(sys.modules, "qra_bo.finetune.quantization.plane_kernel", module)
    monkeypatch.setattr(planes, "unpacked", lambda _kind, fused, _plain: fused())
    weight = planes.weight_of([], parse_format("sym4-g64"), scale, 8, (2, 64), torch.float32, None)
    assert weight.shape == (2, 64)
    assert (used, current) == ([torch.device("cuda", 1)], [torch.device("cuda", 0)])


def test_lack_of_memory_is_no_fault_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_unpack, "compared", {})

    def full() -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        unpacked(("hqq2",), full, lambda: torch.ones(3))
    assert fused_unpack.compared == {}
