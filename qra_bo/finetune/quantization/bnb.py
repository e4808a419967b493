"""bitsandbytes: NF4 with and without double quantisation (4 bits), and row-wise int8: LLM.int8's
storage (8 bits), unpacked to 16 bits for every product.

Facts of bitsandbytes 0.50 that shape this file:

- NF4's CPU kernel is wrong where rows are not whole blocks but whole half-blocks (``in_features % 64 == 32``): it
  reads the scale of the wrong block. The weight is therefore unpacked as a matrix of one block a row.
- ``Linear8bitLt`` on a CPU trains on the dequantised weight (``CB * SCB / 127``, rounded to the input's type), but
  evaluates with activations quantised in fp16. Here both use the dequantised weight, unpacked in fp32 tiles that fit
  into the cache: four times as fast as the library's mixed-type multiplication and equal to it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes import functional as F
from torch import Tensor, nn

from qra_bo.finetune.quantization.base import Grid, LevelBackend, PackedLinear, State, frozen, tile_numel
from qra_bo.memory.formats import NESTED_BLOCK
from qra_bo.space.space import StorageFormat


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the 16 levels of NF4 and the 256 of double quantisation: one table each for all layers of a device."""
    return F.get_4bit_type("nf4", device=device), F.create_dynamic_map().to(device)


class PackedNF4(PackedLinear, bnb.nn.Linear4bit):  # type: ignore[misc]
    """A ``Linear4bit`` with the library's storage and the product of ``PackedLinear``."""

    quant_state: Any

    def packed_state(self) -> State:
        state = self.weight.quant_state
        nested = {"nested_absmax": state.state2.absmax, "offset": state.offset} if state.nested else {}
        return {"codes": self.weight.data, "absmax": state.absmax, **nested}

    def carry(self, move: Callable[[Tensor], Tensor]) -> None:
        state = getattr(self.weight, "quant_state", self.quant_state)  # a weight that can't move in place loses it
        self.quant_state = self.weight.quant_state = state
        state.code, nested_code = _tables(self.weight.device)
        state.absmax = move(state.absmax)
        if state.nested:
            state.offset = move(state.offset)
            state.state2.absmax, state.state2.code = move(state.state2.absmax), nested_code

    def unpack(self) -> Tensor:
        state = self.weight.quant_state
        absmax = state.absmax
        if state.nested:
            absmax = F.dequantize_blockwise(absmax, state.state2).add_(state.offset)
        numel, block = self.out_features * self.in_features, state.blocksize
        shape = (numel // block, block) if numel % block == 0 else (1, numel)
        flat: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
            self.weight.data, absmax, block, "nf4", shape, self.compute_dtype)
        return flat.view(self.out_features, self.in_features)


class PackedInt8(PackedLinear, bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """A ``Linear8bitLt`` that multiplies with the dequantised weight, in training and in evaluation."""

    def packed_state(self) -> State:
        return {"codes": self.state.CB, "scale": self.state.SCB}

    def carry(self, move: Callable[[Tensor], Tensor]) -> None:
        self.state.CB, self.state.SCB = self.weight.data, move(self.state.SCB)

    def unpack(self) -> Tensor:
        codes, scale = self.state.CB, self.state.SCB.unsqueeze(1).mul(1.0 / 127.0)
        out = torch.empty(codes.shape, dtype=self.compute_dtype, device=codes.device)
        device = self.target or codes.device
        if device.type != "cpu":
            return torch.mul(codes, scale, out=out)
        rows = max(1, tile_numel(device) // self.in_features)
        scratch = torch.empty(min(rows, self.out_features), self.in_features, device=codes.device)
        for first in range(0, self.out_features, rows):
            tile = scratch[: min(rows, self.out_features - first)]
            span = slice(first, first + len(tile))
            out[span] = tile.copy_(codes[span]).mul_(scale[span])
            if self.target is not None:
                break  # on the meta device one tile stands for all
        return out


class BitsAndBytesBackend(LevelBackend):
    """NF4, and row-wise int8 as LLM.int8 stores it."""

    name = "bitsandbytes"

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        if fmt.bits == 8:
            # The CUDA kernel reads rows one after the other, whatever the strides are.
            codes, scale, _ = F.int8_vectorwise_quant(weight.to(device).half().contiguous())
            return {"codes": codes, "scale": scale}
        codes, state = F.quantize_4bit(weight.to(device).float().contiguous(), blocksize=fmt.block,
                                       compress_statistics=fmt.double_quant, quant_type="nf4")
        if not fmt.double_quant:
            return {"codes": codes, "absmax": state.absmax}
        return {"codes": codes, "absmax": state.absmax, "nested_absmax": state.state2.absmax,
                "offset": state.offset.clone()}

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        with torch.device("meta"):
            if fmt.bits == 8:
                return {"codes": torch.empty(shape, dtype=torch.int8), "scale": torch.empty(shape[0])}
            blocks = -(-shape[0] * shape[1] // fmt.block)
            codes = torch.empty(shape[0] * shape[1] // 2, 1, dtype=torch.uint8)
            if not fmt.double_quant:
                return {"codes": codes, "absmax": torch.empty(blocks)}
            return {"codes": codes, "absmax": torch.empty(blocks, dtype=torch.uint8),
                    "nested_absmax": torch.empty(-(-blocks // NESTED_BLOCK)), "offset": torch.empty(())}

    def grid(self, state: State, fmt: StorageFormat, shape: tuple[int, int]) -> Grid:
        if fmt.bits == 8:
            scale = state["scale"] / 127.0
            return Grid(range(-127, 128), scale, torch.zeros_like(scale), shape[1], shape[1])
        quant_state = self._nf4(state, fmt, shape, torch.float32).weight.quant_state
        absmax = quant_state.absmax
        if quant_state.nested:
            absmax = F.dequantize_blockwise(absmax, quant_state.state2) + quant_state.offset
        levels = _tables(state["codes"].device)[0]
        return Grid(levels, absmax, torch.zeros_like(absmax), fmt.block, shape[1])

    def recoded(self, state: State, fmt: StorageFormat, codes: Tensor) -> State:
        if fmt.bits == 8:
            return {**state, "codes": (codes.int() - 127).to(torch.int8)}
        pairs = nn.functional.pad(codes.reshape(-1), (0, codes.numel() % 2)).view(-1, 2)
        return {**state, "codes": ((pairs[:, 0] << 4) | pairs[:, 1]).view_as(state["codes"])}

    def build(self, state: State, fmt: StorageFormat, shape: tuple[int, int], bias: Tensor | None,
              compute_dtype: torch.dtype) -> nn.Module:
        if fmt.bits == 8:
            layer = PackedInt8(shape[1], shape[0], bias=False, has_fp16_weights=False, device="meta")
            layer.weight = bnb.nn.Int8Params(state["codes"], requires_grad=False, has_fp16_weights=False)
            layer.state.CB, layer.state.SCB = state["codes"], state["scale"]
        else:
            layer = self._nf4(state, fmt, shape, compute_dtype)
        layer.fmt, layer.compute_dtype, layer.bias = fmt, compute_dtype, frozen(bias)
        return layer

    def _nf4(self, state: State, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> PackedNF4:
        device = state["codes"].device
        second = None
        if fmt.double_quant:
            second = F.QuantState(absmax=state["nested_absmax"], code=_tables(device)[1], blocksize=NESTED_BLOCK,
                                  dtype=torch.float32)
        quant_state = F.QuantState(absmax=state["absmax"], shape=torch.Size(shape), code=_tables(device)[0],
                                   blocksize=fmt.block, quant_type="nf4", dtype=dtype, offset=state.get("offset"),
                                   state2=second)
        layer = PackedNF4(shape[1], shape[0], bias=False, compute_dtype=dtype, quant_type="nf4",
                          compress_statistics=fmt.double_quant, device="meta")
        layer.weight = bnb.nn.Params4bit(state["codes"], requires_grad=False, quant_state=quant_state,
                                         blocksize=fmt.block, compress_statistics=fmt.double_quant, quant_type="nf4",
                                         bnb_quantized=True)  # without module=layer, which is a reference cycle
        layer.quant_state = quant_state
        layer.support_avx512bf16_for_cpu = False  # else the library's own forward repacks the weight in eval mode
        return layer
