"""LoRA adapters by PEFT with a rank for every module: attached, checked, run as one autograd node, and detached."""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

from qra_bo.finetune.models.experts import mixed
from qra_bo.finetune.quantization.base import PackedLinear
from qra_bo.space import Unit
from qra_bo.space.allocation import peft_patterns
from qra_bo.utils.errors import ContractError

ADAPTER = "default"


class FusedLora(torch.autograd.Function):
    """``x W^T + bias + scale (x A^T) B^T`` for ``n x in`` inputs; gradients reach ``x``, A and B.

    PEFT adds the adapter's output to the base's by separate nodes: a copy, a product and a sum, and as many in the
    backward, which at small widths cost as much as the matrix products. Here both are accumulated in place. The
    backward needs the tensors that PEFT saves: ``x`` and ``x A^T``.
    """

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


class FusedLayer:
    """The fused forward, mixed into PEFT's layer classes before them.

    A class and no method set on the layer: that would be a reference cycle, which keeps a detached layer and its packed
    base on the device until the garbage collector runs.
    """

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map ``... x in`` to ``... x out``; as PEFT does where adapters are several, merged, disabled or of another
        type, and where autocast chooses the types of products."""
        name, kind = _alone(self), x.device.type  # asked each time: a user may add, switch and delete adapters
        if name is None or x.dtype != self.lora_A[name].weight.dtype or self.disable_adapters or self.merged \
                or args or kwargs or (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return cast(Tensor, super().forward(x, *args, **kwargs))  # type: ignore[misc]
        return fused_linear(x, self.lora_A[name].weight, self.lora_B[name].weight, self.get_base_layer(),
                            self.scaling[name])


def _alone(layer: Any) -> str | None:
    """Return the active adapter of a LoRA layer where it is the only one, without dropout, bias and variants such as
    DoRA; else ``None``."""
    names: list[str] = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or not isinstance(layer.lora_dropout[names[0]], torch.nn.Identity) or layer.lora_variant \
            or layer.lora_B[names[0]].bias is not None:
        return None
    return names[0]


def fuse(model: torch.nn.Module) -> None:
    """Give every LoRA layer over a packed linear the fused forward.

    Layers with dropout, several adapters or variants such as DoRA keep PEFT's own.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and not isinstance(layer, FusedLayer) \
                and isinstance(layer.get_base_layer(), PackedLinear) and _alone(layer) is not None:
            layer.__class__ = mixed(FusedLayer, cast(Hashable, type(layer)))


def attach(model: Any, ranks: Mapping[str, int], alpha_over_rank: float, train_seed: int,
           dtype: torch.dtype) -> PeftModel:
    """Wrap ``model`` in place, initialise, and check the realised ranks and scales.

    ``ranks`` are those of the linears; 0 or missing: no adapter. LoRA's scale ``alpha_over_rank`` is the same at every
    rank. A starts by Kaiming's draw, B at 0. Two allocations with one ``train_seed`` share the first rows of every A,
    so that they differ by their ranks and formats alone.

    Raises:
        ContractError: If PEFT realised another rank, scale or set of modules than requested.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT draws an initialisation of its own, replaced below, and reads an attribute that transformers renamed
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        lora = LoraConfig(**peft_patterns(ranks, alpha_over_rank), lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
        wrapped = get_peft_model(model, lora, autocast_adapter_dtype=False)
    for name, layer in lora_layers(model).items():
        rank, base = layer.r[ADAPTER], layer.get_base_layer()
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        device = next(base.parameters()).device
        bound = 1.0 / np.sqrt(down.in_features)
        rng = np.random.default_rng(np.random.SeedSequence([train_seed, *name.encode()]))
        draws = rng.random((rank, down.in_features), dtype=np.float32)
        first = torch.from_numpy(draws).mul_(2 * bound).sub_(bound)
        down.weight = Parameter(first.to(device, dtype, copy=True))
        up.weight = Parameter(torch.zeros(up.out_features, rank, dtype=dtype, device=device))
    check_realised(model, ranks, alpha_over_rank)
    fuse(model)
    return wrapped


def rank_choice(units: Sequence[Unit], ranks: Sequence[int]) -> Mapping[str, int]:
    """Return the rank of every linear from that of every unit; 0 where it takes no adapter."""
    return {linear.name: rank * linear.adapted
            for unit, rank in zip(units, ranks, strict=True) for linear in unit.linears}


def lora_layers(model: Any) -> dict[str, LoraLayer]:
    """Return the adapted modules by their name within the bare model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def check_realised(model: Any, ranks: Mapping[str, int], alpha_over_rank: float) -> None:
    """Compare every module's realised rank and scale with what was asked; raises ``ContractError`` if they differ."""
    layers = lora_layers(model)
    wanted = {name: rank for name, rank in ranks.items() if rank > 0}
    if set(layers) != set(wanted):
        raise ContractError(f"adapters were requested on {len(wanted)} modules and realised on {len(layers)}: "
                            f"{sorted(set(wanted) ^ set(layers))[:4]}")
    for name, layer in layers.items():
        scale = layer.scaling[ADAPTER]
        if layer.r[ADAPTER] != wanted[name] or abs(scale - alpha_over_rank) > 1e-9:
            raise ContractError(f"{name}: requested rank {wanted[name]} and scale {alpha_over_rank}, "
                                f"realised {layer.r[ADAPTER]} and {scale}")


def detach(model: Any) -> None:
    """Remove every adapter from the bare ``model``, leaving its (quantised) linears in place."""
    for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]:
        model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model._hf_peft_config_loaded = False


def adapter_parameters(model: Any) -> dict[str, dict[str, Parameter]]:
    """Return the trainable weights of every adapted module: ``{module: {"A": r x in, "B": out x r}}``."""
    return {name: {"A": layer.lora_A[ADAPTER].weight, "B": layer.lora_B[ADAPTER].weight}
            for name, layer in lora_layers(model).items()}
