"""No quantisation: weights in 16 bits, whatever the compute type."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from qra_bo.finetune.quantization.base import HALF, PackedLinear, QuantizerBackend, State, frozen
from qra_bo.space.space import StorageFormat


class HalfLinear(PackedLinear, nn.Linear):
    """A frozen ``nn.Linear`` stored in 16 bits."""

    def packed_state(self) -> State:
        return {"codes": self.weight.data}

    def carry(self, move: Callable[[Tensor], Tensor]) -> None:
        """The weight is a parameter, and all there is."""

    def unpack(self) -> Tensor:
        return self.weight.data.to(self.compute_dtype)


class UnquantisedBackend(QuantizerBackend):
    """Weights that have 16 bits keep their type; others become fp16, the type closest to them."""

    name = "none"
    layer: ClassVar[type[HalfLinear]] = HalfLinear

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        half = weight.to(device, weight.dtype if weight.dtype in HALF else torch.float16).contiguous()
        whole = half.untyped_storage().nbytes() == half.numel() * half.element_size()
        return {"codes": half if whole else half.clone()}

    def build(self, state: State, fmt: StorageFormat, shape: tuple[int, int], bias: Tensor | None,
              compute_dtype: torch.dtype) -> nn.Module:
        layer = self.layer(shape[1], shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(state["codes"], requires_grad=False)
        layer.fmt, layer.compute_dtype, layer.bias = fmt, compute_dtype, frozen(bias)
        return layer
