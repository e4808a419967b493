"""No quantisation: weights in 16 bits, whatever the compute type."""

import torch
from torch import Tensor

from qra_bo.finetune.quantization.base import HALF, CodedLinear, QuantizerBackend, State
from qra_bo.space.space import StorageFormat


class HalfLinear(CodedLinear):
    """A frozen ``nn.Linear`` stored in 16 bits."""

    def unpack(self) -> Tensor:
        return self.weight.data.to(self.compute_dtype)


class UnquantisedBackend(QuantizerBackend):
    """Weights that have 16 bits keep their type; others become fp16, the type closest to them."""

    name, layer = "none", HalfLinear

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        half = weight.to(device, weight.dtype if weight.dtype in HALF else torch.float16).contiguous()
        whole = half.untyped_storage().nbytes() == half.numel() * half.element_size()
        return {"codes": half if whole else half.clone()}
