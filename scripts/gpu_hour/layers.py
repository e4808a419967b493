"""Single layers: packing against the CPU, time of unpacking, and time of GPTQ."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.steps import timed
from qra_bo.finetune.quantization import fused_unpack
from qra_bo.finetune.quantization.base import LevelBackend, PackedLinear, State, backend_of
from qra_bo.finetune.quantization.gptq import compensated_codes
from qra_bo.finetune.quantization.moments import Inputs, second_moments
from qra_bo.memory.formats import FORMATS
from qra_bo.space import StorageFormat
from scripts.gpu_hour.stage import Stage

CPU = torch.device("cpu")
TOKENS = 16384
"""Of the second moments that GPTQ uses."""
REPEATS = 5


def seconds(device: torch.device, action: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Return the median seconds of a call after one that is not timed."""
    action()
    return statistics.median(timed(device, action) for _ in range(repeats))


def layer_of(state: State, fmt: StorageFormat, sides: tuple[int, int], dtype: torch.dtype, device: torch.device
             ) -> PackedLinear:
    """Return the layer of packed tensors, which are copied to ``device``; ``sides`` are (out, in)."""
    there = {key: tensor.to(device) for key, tensor in state.items()}
    return backend_of(fmt).build(there, fmt, sides, None, dtype)


def round_trip(stage: Stage) -> Iterator[dict[str, Any]]:
    """Pack a matrix on the CPU and on the device in every format; unpack the same tensors on both."""
    sides = stage.sides
    weight = stage.drawn(*sides)
    for fmt in FORMATS.values():
        state = backend_of(fmt).pack(weight, fmt, CPU)
        there = {key: t.cpu() for key, t in backend_of(fmt).pack(weight, fmt, stage.device).items()}
        row: dict[str, Any] = {"format": fmt.name}
        for dtype in (torch.float32, torch.bfloat16):
            expected = layer_of(state, fmt, sides, dtype, CPU).unpack()
            found = layer_of(state, fmt, sides, dtype, stage.device).unpack().cpu()
            name = str(dtype).removeprefix("torch.")
            row[f"{name}_equal"] = torch.equal(expected, found)
            row[f"{name}_largest_difference"] = float((expected.float() - found.float()).abs().max())
        own = layer_of(there, fmt, sides, torch.float32, CPU).unpack()
        on_cpu = layer_of(state, fmt, sides, torch.float32, CPU).unpack()
        yield {**row, "same_codes": float((there["codes"] == state["codes"]).float().mean()),
               "error_packed_on_cpu": relative(on_cpu, weight), "error_packed_on_device": relative(own, weight)}


def relative(found: Tensor, weight: Tensor) -> float:
    """Return the Frobenius norm of the difference over that of the weight."""
    wide = weight.float()
    return float((found.float() - wide).norm() / wide.norm())


def unpack(stage: Stage) -> Iterator[dict[str, Any]]:
    """Time the unpacking of one matrix in every format, to bf16."""
    sides = stage.sides
    weight = stage.drawn(*sides)
    for fmt in FORMATS.values():
        layer = layer_of(backend_of(fmt).pack(weight, fmt, stage.device), fmt, sides, torch.bfloat16, stage.device)
        found = seconds(stage.device, layer.unpack)
        kernel = fused_unpack.compared.get((fmt.name, torch.bfloat16, layer.packed_state()["codes"].device))
        yield {"format": fmt.name, "milliseconds": 1e3 * found, "fused_kernel": kernel,
               "GB_per_second": 2 * weight.numel() / found / 1e9}


def gptq(stage: Stage) -> Iterator[dict[str, Any]]:
    """Time GPTQ on the linears of one decoder layer, in four formats together."""
    width, mlp = stage.sides
    formats = [FORMATS[name] for name in ("int2-g64", "int3-g64", "nf4", "int8")]
    shapes = {"q, k, v": [(width, width)] * 3, "o": [(width, width)], "gate, up": [(mlp, width)] * 2,
              "down": [(width, mlp)]}
    for name, linears in shapes.items():
        columns = linears[0][1]
        draw = torch.Generator(stage.device).manual_seed(0)
        moments = second_moments(torch.randn(64 if stage.tiny else TOKENS, columns, device=stage.device,
                                             generator=draw))
        stack = []
        for i, shape in enumerate(linears):
            weight = stage.drawn(*shape, seed=i).to(stage.device)
            for fmt in formats:
                if isinstance(backend := backend_of(fmt), LevelBackend):
                    stack.append((weight, backend.grid(backend.pack(weight, fmt, stage.device), fmt, shape)))
        factor = seconds(stage.device, lambda moments=moments: Inputs.of(moments), 1)
        inputs = Inputs.of(moments)
        codes = timed(stage.device, lambda stack=stack, inputs=inputs: compensated_codes(stack, inputs))
        yield {"linears": name, "matrices": len(stack), "factor_seconds": factor, "codes_seconds": codes}
