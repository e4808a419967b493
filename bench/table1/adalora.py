"""AdaLoRA (arXiv 2303.10512) on any quantised base: adapters ``B diag(E) A`` whose least important triplets go.

PEFT's own refuses HQQ layers, and its importance takes three tensors of the size of every adapter; here triplets are
LoRA's A and B with one more vector, so that every backend trains them, and importance takes two. Schedule, importance
and masks are those of PEFT's ``RankAllocator`` (a test holds them to it), but for one thing: importance is
``|weight x gradient|`` of one and the same iterate, as published, where PEFT multiplies the gradient with the weight
after its update.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

from qra_bo.finetune.adapters.lora import ADAPTER, fuse, lora_layers
from qra_bo.finetune.quantization.base import PackedLinear
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.utils.errors import ConfigError

STD = 0.02
"""Standard deviation of A and B at the start; E is zero."""


@dataclass(frozen=True, slots=True)
class AdaLoraSettings:
    """Budget and importance.

    Args:
        initial_rank: Triplets of every linear at the start.
        target_rank: Triplets that stay on average.
        warmup: Share of the steps before the first triplet goes.
        final: Share of the steps after the last one went.
        beta1: Smoothing of the importance.
        beta2: Smoothing of its uncertainty.
        orthogonality: Weight of the mean Frobenius norm of ``A A^T - I`` and ``B^T B - I``.

    Raises:
        ConfigError: If a number is out of range.
    """

    initial_rank: int
    target_rank: int
    warmup: float = 0.1
    final: float = 0.4
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.5

    def __post_init__(self) -> None:
        ok = 1 <= self.target_rank <= self.initial_rank and self.warmup >= 0 and self.final >= 0 \
            and self.warmup + self.final < 1 and 0 < self.beta1 < 1 and 0 < self.beta2 < 1 and self.orthogonality >= 0
        if not ok:
            raise ConfigError("AdaLoRA needs 1 <= target_rank <= initial_rank, shares warmup + final below 1, betas "
                              f"between 0 and 1 and orthogonality >= 0; got {self}")

    def steps(self, total: int) -> tuple[int, int]:
        """Steps of the warm-up and of the final part, of ``total``."""
        return round(self.warmup * total), round(self.final * total)

    def budget(self, step: int, total: int, linears: int) -> int:
        """Triplets of all linears after the update number ``step`` (from 1) of ``total``: a cubic fall."""
        first, last = self.steps(total)
        start, end = self.initial_rank * linears, self.target_rank * linears
        if step <= first:
            return start
        if step > total - last:
            return end
        left = 1 - (step - first) / (total - last - first)
        return int((start - end) * left**3 + end)


class TripletLora(torch.autograd.Function):
    """``x W^T + bias + scale ((x A^T) * E) B^T``; what is saved beyond LoRA's is E."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, values: Tensor, up: Tensor, base: PackedLinear,
                scale: float) -> Tensor:
        bias = None if base.bias is None else base.bias.to(x.dtype)
        inner = x @ down.t()
        out = torch.nn.functional.linear(x, base.weight_matrix(), bias)
        out.addmm_(inner * values, up.t(), alpha=scale)
        ctx.save_for_backward(x, inner, down, values, up)
        ctx.base, ctx.scale = base, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None, None]:
        x, inner, down, values, up = ctx.saved_tensors
        d_up = torch.mm(grad.t(), inner).mul_(values).mul_(ctx.scale)
        d_inner = torch.mm(grad, up).mul_(ctx.scale)
        d_values = (d_inner * inner).sum(0)
        d_inner.mul_(values)
        d_down = torch.mm(d_inner.t(), x)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = torch.mm(grad, ctx.base.weight_matrix())
            d_x.addmm_(d_inner, down)
        return d_x, d_down, d_values, d_up, None, None


def _forward(layer: Any, x: Tensor) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    out = TripletLora.apply(flat, layer.lora_A[ADAPTER].weight, layer.lora_values,  # type: ignore[no-untyped-call]
                            layer.lora_B[ADAPTER].weight, layer.get_base_layer(), layer.scaling[ADAPTER])
    return cast(Tensor, out.view(*x.shape[:-1], out.shape[-1]))


@torch.no_grad()
def make_triplets(model: Any, train_seed: int) -> dict[str, dict[str, Parameter]]:
    """Turn the attached LoRA adapters of ``model`` into triplets, started from ``train_seed``.

    Returns:
        ``{module: {"A": r x in, "E": r, "B": out x r}}``, the trainable weights. Taking adapters off takes all off.
    """
    parameters = {}
    for name, layer in lora_layers(model).items():
        assert isinstance(layer.get_base_layer(), PackedLinear)
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        draw = torch.Generator().manual_seed(_seed_of(name, train_seed))
        for module in (down, up):
            fresh = torch.randn(module.weight.shape, generator=draw).mul_(STD)
            module.weight = Parameter(fresh.to(module.weight.device, module.weight.dtype))
        layer.lora_values = Parameter(torch.zeros(len(down.weight), dtype=down.weight.dtype,
                                                  device=down.weight.device))
        layer.forward = MethodType(_forward, layer)
        parameters[name] = {"A": down.weight, "E": layer.lora_values, "B": up.weight}
    return parameters


def _seed_of(name: str, train_seed: int) -> int:
    return int(np.random.SeedSequence([train_seed, *name.encode()]).generate_state(1)[0])


class RankAllocator:
    """Importance of every triplet, and which of them stay.

    Args:
        parameters: As ``make_triplets`` returns them.
        settings: See there.
        total: Steps of the training.
    """

    def __init__(self, parameters: Mapping[str, Mapping[str, Parameter]], settings: AdaLoraSettings,
                 total: int) -> None:
        self.parameters, self.settings, self.total = parameters, settings, total
        self._step = 0
        every = {(m, k): p for m, named in parameters.items() for k, p in named.items()}
        self._smooth = {key: torch.zeros_like(p, dtype=torch.float32) for key, p in every.items()}
        self._spread = {key: torch.zeros_like(p, dtype=torch.float32) for key, p in every.items()}
        self.kept = {m: torch.ones(len(named["E"]), dtype=torch.bool, device=named["E"].device)
                     for m, named in parameters.items()}

    def tensors(self) -> list[Tensor]:
        """What it keeps between steps."""
        return [*self._smooth.values(), *self._spread.values()]

    @torch.no_grad()
    def observe(self, gradient_scale: float) -> None:
        """Learn from gradients (times ``gradient_scale``) that are about to be used; not in the final part."""
        _, last = self.settings.steps(self.total)
        self._step += 1
        if self._step >= self.total - last:
            return
        for module, named in self.parameters.items():
            for which, p in named.items():
                if p.grad is None:
                    raise ValueError(f"{module}.{which} took no gradient: it is not part of the model that was trained")
                smooth, spread = self._smooth[module, which], self._spread[module, which]
                importance = (p.float() * p.grad).mul_(gradient_scale).abs_()
                smooth.lerp_(importance, 1 - self.settings.beta1)
                spread.lerp_(importance.sub_(smooth).abs_(), 1 - self.settings.beta2)

    @torch.no_grad()
    def masks(self) -> dict[str, Tensor]:
        """``r`` booleans of every module after the update that ``observe`` was last called for: which triplets stay."""
        first, _ = self.settings.steps(self.total)
        count = sum(len(k) for k in self.kept.values())
        gone = count - self.settings.budget(self._step, self.total, len(self.parameters))
        if self._step > first and gone > 0:
            scores = {m: self._score(m) for m in self.parameters}
            least = torch.kthvalue(torch.cat(list(scores.values())), gone).values
            self.kept = {m: s > least for m, s in scores.items()}
        return self.kept

    def _score(self, module: str) -> Tensor:
        def of(which: str) -> Tensor:
            return self._smooth[module, which] * self._spread[module, which]

        return of("E") + of("A").mean(dim=1) + of("B").mean(dim=0)


class AdaLoraOptimizer:
    """``UnitwiseAdamW`` around which ranks shrink; the trainer sees an optimiser.

    Args:
        inner: Over the triplets' weights.
        allocator: Over the same weights.
    """

    def __init__(self, inner: UnitwiseAdamW, allocator: RankAllocator) -> None:
        self.inner, self.allocator = inner, allocator

    def tensors(self) -> list[Tensor]:
        return [*self.inner.tensors(), *self.allocator.tensors()]

    def step(self, lr_factor: float, gradient_scale: float) -> float:
        """Regularise, learn the importance, update, and mask; the norm of the scaled gradient before clipping."""
        self._regularise(gradient_scale)
        self.allocator.observe(gradient_scale)
        norm = self.inner.step(lr_factor, gradient_scale)
        gone = {f"{m}.E": ~kept for m, kept in self.allocator.masks().items()}
        for weight, _ in self.inner.weights():
            if weight.name in gone:
                weight.working.data.masked_fill_(gone[weight.name], 0.0)
                weight.master.data.masked_fill_(gone[weight.name], 0.0)
        return norm

    @torch.no_grad()
    def _regularise(self, gradient_scale: float) -> None:
        """Add the gradient of ``orthogonality`` times the mean norm of ``P P^T - I`` over all A and B."""
        weight = self.allocator.settings.orthogonality / (2 * len(self.allocator.parameters)) / gradient_scale
        if weight == 0:
            return
        for named in self.allocator.parameters.values():
            for p, rows in ((named["A"], named["A"].float()), (named["B"], named["B"].float().t())):
                excess = rows @ rows.t()
                excess.diagonal().sub_(1.0)
                gradient = (excess @ rows).mul_(2 * weight / torch.linalg.vector_norm(excess).clamp_min(1e-12))
                if p.grad is not None:
                    p.grad.add_(gradient if p is named["A"] else gradient.t())


@torch.no_grad()
def realise(model: Any, kept: Mapping[str, Tensor]) -> dict[str, int]:
    """Leave plain LoRA adapters of the triplets that stayed: ``A`` becomes ``E A``; the ranks by module.

    The model computes the same. Modules whose triplets all went have rank 0 and keep one triplet of value 0, as PEFT
    has no adapter of rank 0.
    """
    ranks = {}
    for name, layer in lora_layers(model).items():
        rows = kept[name].nonzero().flatten()
        ranks[name] = len(rows)
        if not len(rows):
            rows = torch.zeros(1, dtype=torch.long, device=kept[name].device)
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        values = layer.lora_values[rows, None]
        down.weight, up.weight = Parameter(down.weight[rows] * values), Parameter(up.weight[:, rows].contiguous())
        del layer.lora_values, layer.forward
        scale = layer.scaling[ADAPTER]
        down.out_features = up.in_features = layer.r[ADAPTER] = len(rows)
        layer.lora_alpha[ADAPTER] = scale * len(rows)
    fuse(model)
    return ranks
