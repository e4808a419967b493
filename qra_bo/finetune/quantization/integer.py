"""Integer grids that other tools load as they are: ``(q - z) * s`` with codes ``q`` of 2 to 8 bits.

In the ``sym`` formats ``z`` is the middle code, ``2^(bits - 1)``, and ``s`` may be negative: there is one level more on
the side of the negative codes, which should be that of the largest weight. In the ``int`` formats ``z`` is an integer
among the codes, and ``s`` is positive. A group is a run of columns of one row.

Scales are values of both bf16 and fp16: at most 8 significant bits, within fp16's normal range. ``q - z`` has at most 8
bits, so that the product is exact in fp32 and is rounded once, to the compute type; a consumer that computes it in bf16
or fp16 gets the same weight.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qra_bo.finetune.quantization.base import (
    SERIAL_NUMEL,
    Grid,
    PackedLinear,
    QuantizerBackend,
    State,
    frozen,
    tile_numel,
)
from qra_bo.finetune.quantization.integer_scales import search
from qra_bo.finetune.quantization.planes import empty_planes, in_planes, quantised, weight_of, words_of
from qra_bo.memory.formats import has_zeros
from qra_bo.space.space import StorageFormat


class IntegerLinear(PackedLinear, nn.Linear):
    """A frozen linear layer over packed integer codes, a scale a group and, in some formats, a zero."""

    others: State
    """The packed tensors beside ``codes``, which ``weight`` holds."""

    def packed_state(self) -> State:
        return {"codes": self.weight.data, **self.others}

    def carry(self, move: Callable[[Tensor], Tensor]) -> None:
        self.others = {name: move(tensor) for name, tensor in self.others.items()}

    def unpack(self) -> Tensor:
        state = self.packed_state()
        zero = state.get("zero", 1 << self.fmt.bits - 1)
        return weight_of(words_of(state), self.fmt, state["scale"], zero, (self.out_features, self.in_features),
                         self.compute_dtype, self.target)


class IntegerBackend(QuantizerBackend):
    """Integer storage; scales (and zeros) are those of the least squared error on a grid of candidates."""

    name = "integer"

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        groups = weight.to(device).reshape(-1, fmt.block)
        run = max(1, (SERIAL_NUMEL if device.type == "cpu" else tile_numel(device)) // fmt.block)
        planes, scale, zero = quantised(groups, fmt, run, lambda part: search(part, fmt.bits, not has_zeros(fmt)),
                                        (torch.bfloat16, torch.uint8))
        zeros = {"zero": zero.view(len(weight), -1)} if has_zeros(fmt) else {}
        return {**planes, "scale": scale.view(len(weight), -1), **zeros}

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        by_group = shape[0], shape[1] // fmt.block
        scale = torch.empty(by_group, dtype=torch.bfloat16, device="meta")
        zeros = {"zero": torch.empty(by_group, dtype=torch.uint8, device="meta")} if has_zeros(fmt) else {}
        return {**empty_planes(fmt, scale.numel()), "scale": scale, **zeros}

    def grid(self, state: State, fmt: StorageFormat, shape: tuple[int, int]) -> Grid:
        scale = state["scale"].float()
        middle = state["zero"].float() if has_zeros(fmt) else float(1 << fmt.bits - 1)
        # Levels of a grid ascend: where the scale is negative they are those of the codes from the highest down.
        lowest = torch.where(scale < 0, (1 << fmt.bits) - 1 - middle, -middle) * scale
        return Grid(range(1 << fmt.bits), scale.abs(), lowest, fmt.block, shape[1])

    def recoded(self, state: State, fmt: StorageFormat, codes: Tensor) -> State:
        ascending = codes.reshape(-1, fmt.block)
        stored = torch.where(state["scale"].view(-1, 1) < 0, (1 << fmt.bits) - 1 - ascending, ascending)
        return {**state, **in_planes(stored, fmt)}

    def build(self, state: State, fmt: StorageFormat, shape: tuple[int, int], bias: Tensor | None,
              compute_dtype: torch.dtype) -> nn.Module:
        layer = IntegerLinear(shape[1], shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(state["codes"], requires_grad=False)
        layer.others = {name: tensor for name, tensor in state.items() if name != "codes"}
        layer.fmt, layer.compute_dtype, layer.bias = fmt, compute_dtype, frozen(bias)
        return layer
