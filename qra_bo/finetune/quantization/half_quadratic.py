"""HQQ (scale and zero a group): codes by the library, products by ``PackedLinear``.

Metadata is kept in fp16 whatever the compute type, and a weight is ``(code - zero) * scale`` in fp32 before it is
rounded to the compute type: in bf16 the library would round a zero of 200 to a multiple of 1, which shifts a whole
group of 8-bit codes.

Codes of 5 and 6 bits, for which the library has no packing, are two planes: the upper 4 bits and the lower 1 or 2. On a
CPU the library's algorithm (``hqq_solver``) is applied to runs of groups: they fit into the cache, and are too small
for torch to split between threads, so that the codes are the same on any number of threads. (Its stopping rule then
looks at the mean error of a run instead of the whole matrix.)
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.finetune.quantization.base import SERIAL_NUMEL, Grid, PackedLinear, QuantizerBackend, State, frozen
from qra_bo.finetune.quantization.hqq_solver import solve
from qra_bo.finetune.quantization.planes import empty_planes, in_planes, quantised, weight_of
from qra_bo.memory.formats import planes_of
from qra_bo.space.space import StorageFormat

with warnings.catch_warnings():  # hqq decorates with torch.compile, whose own imports use old TorchScript
    warnings.filterwarnings("ignore", message=r"`?torch\.jit\.script.*", category=DeprecationWarning)
    from hqq.core import quantize as library
    from hqq.core.quantize import BaseQuantizeConfig, Quantizer


class HQQLinear(PackedLinear, library.HQQLinear):  # type: ignore[misc]
    """The library's layer with the product of ``PackedLinear``; PEFT recognises it by the name of its class."""

    @classmethod
    def set_backend(cls, backend: library.HQQBackend) -> None:
        """Ignore the library's choice of a forward for the whole class: this class has its own."""

    forward = PackedLinear.forward
    to, cuda, cpu = nn.Module.to, nn.Module.cuda, nn.Module.cpu  # the library's do nothing, or all but the lower plane

    meta: dict[str, Any]
    lower: Tensor | None
    """The plane of the lower bits, where there are two; ``W_q`` is that of the upper ones."""

    def packed_state(self) -> State:
        lower = {} if self.lower is None else {"lower_codes": self.lower.data}
        return {"codes": self.W_q.data, **lower, "scale": self.meta["scale"], "zero": self.meta["zero"]}

    def carry(self, move: Callable[[Tensor], Tensor]) -> None:
        self.meta = {**self.meta, "scale": move(self.meta["scale"]), "zero": move(self.meta["zero"])}
        self.device = str(self.W_q.device)  # where the library and PEFT put what they make

    def dequantize(self) -> Tensor:
        """Unpack, under the library's name, which PEFT calls to merge."""
        return self.unpack()

    def unpack(self) -> Tensor:
        words = [plane.data for plane in (self.W_q, self.lower) if plane is not None]
        return weight_of(words, self.fmt, self.meta["scale"], self.meta["zero"], (self.out_features, self.in_features),
                         self.compute_dtype, self.target)


class HQQBackend(QuantizerBackend):
    """HQQ storage, grouped along the columns (axis 1)."""

    name = "hqq"

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        groups = weight.to(device).float().reshape(-1, fmt.block)

        def quantise(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if device.type == "cpu":
                return solve(part, fmt.bits)
            codes, meta = Quantizer.quantize(part, nbits=fmt.bits, group_size=fmt.block, axis=1, bitpack=False,
                                             device=str(device))
            return codes, meta["scale"], meta["zero"]

        run = max(1, SERIAL_NUMEL // fmt.block) if device.type == "cpu" else len(groups)
        planes, scale, zero = quantised(groups, fmt, run, quantise, (torch.float16, torch.float16))
        return {**planes, "scale": scale, "zero": zero}

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        groups = shape[0] * shape[1] // fmt.block
        scale, zero = (torch.empty(groups, 1, dtype=torch.float16, device="meta") for _ in range(2))
        return {**empty_planes(fmt, groups), "scale": scale, "zero": zero}

    def grid(self, state: State, fmt: StorageFormat, shape: tuple[int, int]) -> Grid:
        scale = state["scale"].float()
        return Grid(range(1 << fmt.bits), scale, -state["zero"].float() * scale, fmt.block, shape[1])

    def recoded(self, state: State, fmt: StorageFormat, codes: Tensor) -> State:
        return {**state, **in_planes(codes.reshape(-1, fmt.block), fmt)}

    def build(self, state: State, fmt: StorageFormat, shape: tuple[int, int], bias: Tensor | None,
              compute_dtype: torch.dtype) -> nn.Module:
        device = state["codes"].device
        config = BaseQuantizeConfig(nbits=fmt.bits, group_size=fmt.block, axis=1)
        layer = HQQLinear(None, config, compute_dtype=compute_dtype, device=str(device), initialize=False)
        packing = Quantizer.bit_to_packing[planes_of(fmt)[0].bits]
        layer.W_q, layer.lower = frozen(state["codes"]), frozen(state.get("lower_codes"))
        # With fp32 as the compute type here, Quantizer.dequantize gives the very weight that `unpack` rounds (of one
        # plane; the library knows no more).
        layer.meta = {"nbits": fmt.bits, "group_size": fmt.block, "shape": torch.Size(shape), "axis": 1,
                      "scale": state["scale"], "zero": state["zero"], "packing": packing, "view_as_float": False,
                      "unpack_view_dtype": Quantizer.unpack_view_dtype[packing], "compute_dtype": torch.float32,
                      "quant_scale": False, "quant_zero": False}
        layer.out_features, layer.in_features = shape
        layer.fmt, layer.bias, layer.ready = fmt, frozen(bias), True
        return layer
