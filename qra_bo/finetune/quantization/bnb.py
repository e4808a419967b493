"""bitsandbytes: NF4 with and without double quantisation (4 bits), and row-wise int8: LLM.int8's
storage (8 bits), unpacked to 16 bits for every product.

Facts of bitsandbytes 0.50 that shape this file:

- NF4's CPU kernel is wrong where rows are not whole blocks but whole half-blocks (``in_features % 64 == 32``): it
  reads the scale of the wrong block. The weight is therefore unpacked as a matrix of one block a row.
- Its own layers are not used. ``Linear8bitLt`` on a CPU trains on the dequantised weight (codes times scale over 127,
  rounded to the input's type), but evaluates with activations quantised in fp16. Here both use the dequantised weight,
  unpacked in fp32 tiles that fit into the cache: four times as fast as the library's mixed-type multiplication and
  equal to it. ``Linear4bit`` repacks its weight in place in eval mode on CPUs with avx512_bf16.
"""

from functools import cache

import torch
from bitsandbytes import functional as F
from torch import Tensor, nn

from qra_bo.finetune.quantization.base import Grid, LevelBackend, PackedLinear, State, tile_numel
from qra_bo.memory.formats import NESTED_BLOCK
from qra_bo.space.space import StorageFormat


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the 16 levels of NF4 and the 256 of double quantisation: one table each for all layers of a device."""
    return F.get_4bit_type("nf4", device=device), F.create_dynamic_map().to(device)


def _block_scales(state: State) -> Tensor:
    """Return the scales of NF4's blocks in fp32."""
    absmax = state["absmax"]
    if "offset" not in state:
        return absmax
    code = _tables(absmax.device)[1]
    wide: Tensor = F.dequantize_blockwise(absmax, absmax=state["nested_absmax"], code=code, blocksize=NESTED_BLOCK)
    return wide.add_(state["offset"])


class BitsAndBytesLinear(PackedLinear):
    """A frozen linear layer with the library's storage and the product of ``PackedLinear``."""

    def unpack(self) -> Tensor:
        if self.fmt.bits == 8:
            return self._rows()
        numel, block = self.out_features * self.in_features, self.fmt.block
        shape = (numel // block, block) if numel % block == 0 else (1, numel)
        flat: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
            self.weight.data, _block_scales(self.others), block, "nf4", shape, self.compute_dtype)
        return flat.view(self.out_features, self.in_features)

    def _rows(self) -> Tensor:
        codes, scale = self.weight.data, self.others["scale"].unsqueeze(1).mul(1.0 / 127.0)
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

    layer = BitsAndBytesLinear

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
        absmax = _block_scales(state)
        levels = _tables(state["codes"].device)[0]
        return Grid(levels, absmax, torch.zeros_like(absmax), fmt.block, shape[1])

    def recoded(self, state: State, fmt: StorageFormat, codes: Tensor) -> State:
        if fmt.bits == 8:
            return {**state, "codes": (codes.int() - 127).to(torch.int8)}
        pairs = nn.functional.pad(codes.reshape(-1), (0, codes.numel() % 2)).view(-1, 2)
        return {**state, "codes": ((pairs[:, 0] << 4) | pairs[:, 1]).view_as(state["codes"])}

    def tables(self, fmt: StorageFormat, device: torch.device) -> tuple[Tensor, ...]:
        return _tables(device) if fmt.bits == 4 else ()
