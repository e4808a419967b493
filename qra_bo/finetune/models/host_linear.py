"""Dense linears whose weights stay in host memory, so that a device holds only the packed layers of the base.

A run needs the base in 16 bits only for its profile and for the choice of codes. Where the device or the budget is too
small for that, each weight is copied to it when its layer runs, forward and backward, and freed again. The same keeps
weights in the 16 bits of their file where a CPU computes in fp32.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Product(torch.autograd.Function):
    """``x W^T + b`` that copies ``W`` again for its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return functional.linear(x, _beside(weight, x), None if bias is None else _beside(bias, x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0]
        return gradient @ _beside(ctx.weight, gradient), None, None


def _beside(weight: Tensor, x: Tensor) -> Tensor:
    """Return ``weight`` on the device and in the type of ``x``; it is copied in its own type, which may be narrower."""
    return weight.to(x.device).to(x.dtype)


class HostLinear(nn.Module):
    """A frozen linear layer with inputs and outputs on a device, over ``original``, which is in host memory."""

    original: nn.Linear

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.__dict__["original"] = original  # no submodule: moving a model leaves it where it is

    @property
    def weight(self) -> Tensor:
        """``out x in``, on the host."""
        return self.original.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x, self.weight, self.original.bias)  # type: ignore[no-untyped-call]
        return product


def keep_on_host(model: nn.Module, linears: Sequence[str]) -> None:
    """Put a ``HostLinear`` in the place of every linear, so that the rest of ``model`` can move to a device alone."""
    for name in linears:
        model.set_submodule(name, HostLinear(cast(nn.Linear, model.get_submodule(name))))


def is_too_large(dense_bytes: int, device: torch.device, room: int | None) -> bool:
    """Whether a base of ``dense_bytes`` should stay in host memory: a profile needs as much again beside it.

    ``room`` are the bytes of the device that the run may use; ``None`` stands for all that are free.
    """
    if device.type != "cuda":
        return False
    free = torch.cuda.mem_get_info(device)[0]
    return 2 * dense_bytes > (free if room is None else min(free, room))
