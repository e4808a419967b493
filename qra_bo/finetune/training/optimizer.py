"""AdamW with fp32 master weights, one unit of the decoder at a time.

Working copies of the adapters have the compute type, so that no activation is cast; masters and moments are fp32.
Updating unit by unit keeps the fp32 gradients of one unit alive: 16 bytes a parameter in bf16 (2 working, 2 gradient, 4
master, 8 moments) and in fp32 (working copy and master are one). 8-bit ones: bitsandbytes'; see ``memory.optimizers``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from qra_bo.space.decoder import expert_of

_MAPS = ("qmap1", "qmap2")
"""Tables that bitsandbytes keeps in every state; they are the same for all and are never saved."""


@dataclass(frozen=True, slots=True)
class AdamWSettings:
    """Hyperparameters that all units share.

    Args:
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled, times the learning rate.
        clip: Largest norm of the whole gradient; 0 leaves it as it is.
        kind: One of ``memory.optimizers.OPTIMIZERS``.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    kind: str = "adamw"


class Weight(NamedTuple):
    """A named adapter weight: working copy in the model, and fp32 master (one tensor where the model is in fp32)."""

    name: str
    working: Parameter
    master: Tensor


class UnitwiseAdamW:
    """AdamW over groups (units) of named adapter weights, each group with a peak learning rate of its own.

    Attributes:
        groups: Weights, peak learning rate and optimiser (of torch or bitsandbytes) of every group.
    """

    def __init__(self, groups: Sequence[tuple[Mapping[str, Parameter], float]], settings: AdamWSettings) -> None:
        self.settings = settings
        self.groups: list[tuple[list[Weight], float, torch.optim.Optimizer]] = []
        maps: dict[str, Tensor] = {}
        for named, lr in groups:
            if named:
                weights = [Weight(name, p, p if p.dtype == torch.float32 else Parameter(p.detach().float()))
                           for name, p in named.items()]
                self.groups.append((weights, lr, _inner([w.master for w in weights], lr, settings, maps)))

    def weights(self) -> Iterator[tuple[Weight, dict[str, Any]]]:
        """Iterate over all weights, each with the state of its optimiser."""
        for weights, _, optimizer in self.groups:
            for weight in weights:
                yield weight, optimizer.state.get(weight.master, {})

    def tensors(self) -> list[Tensor]:
        """Return every tensor that it keeps alive between steps: masters and moments."""
        return [tensor for weight, state in self.weights() for tensor in (weight.master, *state.values())
                if isinstance(tensor, Tensor)]

    def add_up(self, add: Callable[[Tensor], Any]) -> None:
        """Replace the gradients by their sums over several processes, by ``add`` in place and one unit at a time."""
        for weights, _, _ in self.groups:
            for name, working, _ in weights:
                if working.grad is None and expert_of(name) is not None:  # other processes' tokens may reach it
                    working.grad = torch.zeros_like(working)
            gradients = [working.grad for _, working, _ in weights if working.grad is not None]
            flat = torch.nn.utils.parameters_to_vector(gradients)
            add(flat)
            torch.nn.utils.vector_to_parameters(flat, gradients)

    @torch.no_grad()
    def step(self, lr_factor: float, gradient_scale: float) -> float:
        """Update all weights and drop the gradients; return the norm of the scaled gradient before clipping.

        ``lr_factor`` multiplies every group's peak learning rate, ``gradient_scale`` the accumulated gradients.
        """
        norms = [torch.linalg.vector_norm(w.working.grad, dtype=torch.float32) for w, _ in self.weights()
                 if w.working.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) * gradient_scale if norms else 0.0
        scale = gradient_scale
        if self.settings.clip and norm > self.settings.clip:
            scale *= self.settings.clip / norm
        for weights, lr, optimizer in self.groups:
            for name, working, master in weights:
                if working.grad is None and expert_of(name) is None:
                    raise ValueError("an adapter took no gradient: it is not part of the model that was trained")
                # No token of the step may have reached an expert.
                gradient = torch.zeros_like(master) if working.grad is None else working.grad.float().mul_(scale)
                working.grad = None
                master.grad = gradient
            optimizer.param_groups[0]["lr"] = lr * lr_factor
            optimizer.step()
            for _, working, master in weights:
                master.grad = None
                if master is not working:
                    working.copy_(master)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Return masters and moments by name on the host, to continue from bit for bit.

        They are copied one by one: on the device nothing is needed beside them.
        """
        out: dict[str, Tensor] = {}
        for (name, _, master), state in self.weights():
            values = {"master": master, **{key: value for key, value in state.items() if key not in _MAPS}}
            out.update({f"{name}|{key}": _on_host(torch.as_tensor(value)) for key, value in values.items()})
        return out

    def masters(self) -> dict[str, Tensor]:
        """Return the masters alone by name, on the host."""
        return {weight.name: _on_host(weight.master) for weight, _ in self.weights()}

    @torch.no_grad()
    def load_masters(self, masters: Mapping[str, Tensor]) -> None:
        """Put the result of ``masters`` into the model; the moments stay as they are."""
        for (name, working, master), _ in self.weights():
            master.copy_(masters[name])
            working.copy_(master)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the result of ``state`` for the same parameters."""
        for weights, _, optimizer in self.groups:
            for index, (name, working, master) in enumerate(weights):
                master.copy_(state[f"{name}|master"].to(master.device))
                working.copy_(master)
                if self.settings.kind == "adamw":
                    optimizer.state[master] = {key: state[f"{name}|{key}"].clone().to(master.device)
                                               for key in ("step", "exp_avg", "exp_avg_sq")}
                else:
                    _load_bitsandbytes(optimizer, master, index, name, state)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _inner(masters: Sequence[Tensor], lr: float, settings: AdamWSettings,
           maps: dict[str, Tensor]) -> torch.optim.Optimizer:
    """Return the optimiser of one group; those of bitsandbytes share ``maps``, their tables."""
    options: dict[str, Any] = dict(lr=lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)
    if settings.kind == "adamw":
        return torch.optim.AdamW(masters, fused=True, **options)
    from bitsandbytes.optim import AdamW  # heavy, and needed by this kind alone
    inner: Any = AdamW(masters, optim_bits=8, **options)
    inner.name2qmap = maps
    return cast(torch.optim.Optimizer, inner)


def _load_bitsandbytes(optimizer: Any, master: Tensor, index: int, name: str, state: Mapping[str, Tensor]) -> None:
    """Fill the buffers that the library makes for a parameter from saved ones."""
    optimizer.init_state(optimizer.param_groups[0], master, 0, index)
    for key, value in optimizer.state[master].items():
        if key == "step":
            optimizer.state[master][key] = int(state[f"{name}|step"])
        elif key not in _MAPS:
            value.copy_(state[f"{name}|{key}"].to(value.device))
