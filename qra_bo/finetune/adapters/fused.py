"""A quantised linear and its adapter in one autograd node.

PEFT adds ``scale * B(A(x))`` to the base's output by separate nodes: a copy of the output, a product, a sum, and as
many again in the backward, which at small widths cost as much as the matrix products. Here both are accumulated in
place: ``y = x W^T + scale (x A^T) B^T``. The backward needs the tensors that PEFT saves: ``x`` and ``x A^T``.
"""

from types import MethodType
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.autograd.function import once_differentiable

from qra_bo.finetune.quantization.base import PackedLinear


class FusedLora(torch.autograd.Function):
    """``x W^T + bias + scale (x A^T) B^T`` for ``n x in`` inputs; gradients reach ``x``, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, base: PackedLinear, scale: float) -> Tensor:
        bias = None if base.bias is None else base.bias.to(x.dtype)
        inner = x @ down.t()
        out = torch.nn.functional.linear(x, base.weight_matrix(), bias)
        out.addmm_(inner, up.t(), alpha=scale)
        ctx.save_for_backward(x, inner, down, up)
        ctx.base, ctx.scale = base, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, inner, down, up = ctx.saved_tensors
        d_up = torch.mm(grad.t(), inner).mul_(ctx.scale)
        d_inner = torch.mm(grad, up).mul_(ctx.scale)
        d_down = torch.mm(d_inner.t(), x)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = torch.mm(grad, ctx.base.weight_matrix())
            d_x.addmm_(d_inner, down)
        return d_x, d_down, d_up, None, None


def fused_linear(x: Tensor, down: Tensor, up: Tensor, base: PackedLinear, scale: float) -> Tensor:
    """Map ``... x in`` to ``... x out`` by ``base`` and the adapter ``down`` (``r x in``), ``up`` (``out x r``)."""
    flat = x.reshape(-1, x.shape[-1])
    out: Tensor = FusedLora.apply(flat, down, up, base, scale)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[-1])


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    base, (name,) = layer.get_base_layer(), layer.active_adapters
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    if x.dtype != down.dtype or layer.disable_adapters or layer.merged or args or kwargs:
        return cast(Tensor, type(layer).forward(layer, x, *args, **kwargs))
    return fused_linear(x, down, up, base, layer.scaling[name])


def fuse(model: torch.nn.Module) -> int:
    """Give every plain LoRA layer over a packed linear the fused forward; return their number.

    Layers with dropout, several adapters or variants such as DoRA keep PEFT's own.
    """
    count = 0
    for layer in model.modules():
        if not isinstance(layer, LoraLayer) or not isinstance(layer.get_base_layer(), PackedLinear):
            continue
        (name, *others) = layer.active_adapters
        plain = not others and isinstance(layer.lora_dropout[name], torch.nn.Identity) and not layer.lora_variant \
            and layer.lora_B[name].bias is None
        if plain:
            layer.forward = MethodType(_forward, layer)
            count += 1
    return count
