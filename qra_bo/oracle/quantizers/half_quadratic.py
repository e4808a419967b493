"""HQQ (2, 3, 4 and 8 bits, scale and zero a group): codes by the library, products by ours.

Metadata is kept in fp16 whatever the compute type, and a weight is ``(code - zero) * scale`` in fp32 before it is
rounded to the compute type: in bf16 the library would round a zero of 200 to a multiple of 1, which shifts a whole
group of 8-bit codes.

On a CPU the library's solver is called on runs of groups: groups do not depend on each other, runs that fit into the
cache are three times as fast, and a run is too small for torch to split between threads, so that the codes are the
same on any number of threads. (Its stopping rule then looks at the mean error of a run instead of the whole matrix.)
"""

import torch
from torch import Tensor, nn

from qra_bo.errors import ModelError
from qra_bo.oracle.quantizers.base import PackedLinear, QuantizerBackend, State, frozen, tile_numel
from qra_bo.oracle.quantizers.grid import Grid
from qra_bo.oracle.quantizers.quiet import hush_hqq
from qra_bo.space.formats import StorageFormat

with hush_hqq():
    from hqq.core import quantize as library
    from hqq.core.quantize import BaseQuantizeConfig, Quantizer

_SERIAL_NUMEL = (1 << 15) - 1
"""Torch splits reductions of more elements between threads, which changes their last bits."""


class HQQLinear(PackedLinear, library.HQQLinear):  # type: ignore[misc]
    """The library's layer with our product; PEFT knows it by the name of its class."""

    @classmethod
    def set_backend(cls, backend: library.HQQBackend) -> None:
        """The library chooses a forward for the whole class here; this class has its own."""

    forward = PackedLinear.forward

    def codes(self) -> State:
        return {"codes": self.W_q.data}

    def metadata(self) -> State:
        return {"scale": self.meta["scale"], "zero": self.meta["zero"]}

    def dequantize(self) -> Tensor:
        """The library's name for ``unpack`` (PEFT calls it to merge)."""
        return self.unpack()

    def unpack(self) -> Tensor:
        words, scale, zero = self.W_q.data, self.meta["scale"], self.meta["zero"]
        bits, (n_groups, group) = self.fmt.bits, (len(scale), self.fmt.block)
        out = torch.empty(n_groups, group, dtype=self.compute_dtype, device=words.device)
        per_word = {2: 4, 3: 10, 4: 2, 8: 1}[bits]
        step = max(1, tile_numel(words.device) // group)
        direct = self.compute_dtype == torch.float32
        scratch = out if direct else torch.empty(min(step, len(words)), group, dtype=torch.float32, device=words.device)
        for k in range(per_word):  # the k-th field of all words holds one run of consecutive groups
            shift, start = bits * (per_word - 1 - k), k * len(words)
            end = min(start + len(words), n_groups)
            for first in range(start, end, step):
                last = min(first + step, end)
                field = words[first - start : last - start]
                if per_word > 1:
                    field = (field >> shift) & ((1 << bits) - 1)
                tile = out[first:last] if direct else scratch[: last - first]
                tile.copy_(field).sub_(zero[first:last].float()).mul_(scale[first:last].float())
                if not direct:
                    out[first:last] = tile
        return out.view(self.out_features, self.in_features)


class HQQBackend(QuantizerBackend):
    """HQQ storage, grouped along the columns (axis 1)."""

    name = "hqq"
    supported_bits = (2, 3, 4, 8)

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        groups = weight.to(device, torch.float32).reshape(-1, fmt.block)
        run = max(1, _SERIAL_NUMEL // fmt.block) if device.type == "cpu" else len(groups)
        codes = torch.empty(groups.shape, dtype=torch.uint8, device=device)
        scale = torch.empty(len(groups), 1, dtype=torch.float16, device=device)
        zero = torch.empty_like(scale)
        for first in range(0, len(groups), run):
            span = slice(first, first + run)
            part, meta = Quantizer.quantize(groups[span], nbits=fmt.bits, group_size=fmt.block, axis=1, bitpack=False,
                                            device=str(device))
            codes[span], scale[span], zero[span] = part, meta["scale"], meta["zero"]
        if not (torch.isfinite(scale).all() and torch.isfinite(zero).all()):
            raise ModelError(f"{fmt.name} can't store a weight matrix: its groups need scales or zeros beyond the "
                             "range of fp16; weights are not finite or too large")
        return {"codes": Quantizer.pack[Quantizer.bit_to_packing[fmt.bits]](codes), "scale": scale, "zero": zero}

    def grid(self, state: State, fmt: StorageFormat, shape: tuple[int, int]) -> Grid:
        scale = state["scale"].float()
        levels = torch.arange(1 << fmt.bits, device=scale.device)
        return Grid.of_groups(levels, scale, -state["zero"].float() * scale, fmt.block, shape)

    def recoded(self, state: State, fmt: StorageFormat, codes: Tensor) -> State:
        return {**state, "codes": Quantizer.pack[Quantizer.bit_to_packing[fmt.bits]](codes.reshape(-1, fmt.block))}

    def build(self, state: State, fmt: StorageFormat, shape: tuple[int, int], bias: Tensor | None,
              compute_dtype: torch.dtype) -> nn.Module:
        device = state["codes"].device
        config = BaseQuantizeConfig(nbits=fmt.bits, group_size=fmt.block, axis=1)
        layer = HQQLinear(None, config, compute_dtype=compute_dtype, device=str(device), initialize=False)
        packing = Quantizer.bit_to_packing[fmt.bits]
        layer.W_q = frozen(state["codes"])
        # With fp32 as the compute type here, Quantizer.dequantize gives the very weight that `unpack` rounds.
        layer.meta = {"nbits": fmt.bits, "group_size": fmt.block, "shape": torch.Size(shape), "axis": 1,
                      "scale": state["scale"], "zero": state["zero"], "packing": packing, "view_as_float": False,
                      "unpack_view_dtype": Quantizer.unpack_view_dtype[packing], "compute_dtype": torch.float32,
                      "quant_scale": False, "quant_zero": False}
        layer.out_features, layer.in_features = shape
        layer.fmt, layer.bias, layer.ready = fmt, frozen(bias), True
        return layer
