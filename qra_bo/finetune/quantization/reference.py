"""A group quantiser in plain torch: rounding between the minimum and maximum of each group; slow and simple."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qra_bo.finetune.quantization.base import Grid, PackedLinear, QuantizerBackend, State, frozen
from qra_bo.space.space import StorageFormat


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Return the little-endian bit stream, ``n bits / 8`` bytes, of ``n`` codes; ``n bits`` must be a multiple of 8."""
    stream = (codes.reshape(-1, 1) >> torch.arange(bits, device=codes.device)) & 1
    weights = 1 << torch.arange(8, device=codes.device)
    return (stream.reshape(-1, 8) * weights).sum(dim=1).to(torch.uint8)


def unpack_bits(stream: Tensor, bits: int) -> Tensor:
    """Return the ``n`` codes of a bit stream."""
    single = (stream.reshape(-1, 1).int() >> torch.arange(8, device=stream.device)) & 1
    return (single.reshape(-1, bits) << torch.arange(bits, device=stream.device)).sum(dim=1)


class ReferenceLinear(PackedLinear, nn.Linear):
    """A frozen linear layer over a bit stream of codes, with an fp16 scale and minimum a group."""

    scale: Tensor
    minimum: Tensor

    def packed_state(self) -> State:
        return {"codes": self.weight.data, "scale": self.scale, "minimum": self.minimum}

    def carry(self, move: Callable[[Tensor], Tensor]) -> None:
        self.scale, self.minimum = move(self.scale), move(self.minimum)

    def unpack(self) -> Tensor:
        codes = unpack_bits(self.weight.data, self.fmt.bits).view(-1, self.fmt.block)
        dense = codes.float() * self.scale.float() + self.minimum.float()
        return dense.to(self.compute_dtype).view(self.out_features, self.in_features)


class ReferenceBackend(QuantizerBackend):
    """Min-max groups along the columns."""

    name = "reference"

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        groups = weight.to(device).float().reshape(-1, fmt.block)
        low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
        levels = (1 << fmt.bits) - 1
        # Codes are chosen for the metadata as stored, so that rounding it costs next to nothing.
        scale = ((high - low) / levels).clamp_min(torch.finfo(torch.float16).tiny).half()
        minimum = low.half()
        codes = ((groups - minimum.float()) / scale.float()).round_().clamp_(0, levels)
        return {"codes": pack_bits(codes.int(), fmt.bits), "scale": scale, "minimum": minimum}

    def grid(self, state: State, fmt: StorageFormat, shape: tuple[int, int]) -> Grid:
        return Grid(range(1 << fmt.bits), state["scale"], state["minimum"], fmt.block, shape[1])

    def recoded(self, state: State, fmt: StorageFormat, codes: Tensor) -> State:
        return {**state, "codes": pack_bits(codes.int(), fmt.bits)}

    def build(self, state: State, fmt: StorageFormat, shape: tuple[int, int], bias: Tensor | None,
              compute_dtype: torch.dtype) -> nn.Module:
        layer = ReferenceLinear(shape[1], shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(state["codes"], requires_grad=False)
        layer.scale, layer.minimum = state["scale"], state["minimum"]
        layer.fmt, layer.compute_dtype, layer.bias = fmt, compute_dtype, frozen(bias)
        return layer
