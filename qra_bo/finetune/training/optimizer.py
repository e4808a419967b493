"""AdamW with fp32 master weights, one unit of the decoder at a time.

Working copies of the adapters have the compute type, so that no activation is cast; masters and moments are
fp32. Updating unit by unit keeps the fp32 gradients of one unit alive instead of all: 16 bytes a parameter in
bf16 (2 working, 2 gradient, 4 master, 8 moments), and 16 in fp32 (working copy and master are one). Moments of 8 bits
and paged ones are bitsandbytes'; their bytes are in ``memory.optimizers``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from qra_bo.memory.optimizers import has_8bit_states, is_paged

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


class Optimizer(Protocol):
    """What the trainer and the memory probe need."""

    def step(self, lr_factor: float, gradient_scale: float) -> float:
        """One update with gradients times ``gradient_scale``; they are dropped. The norm before clipping."""
        ...

    def tensors(self) -> list[Tensor]:
        """Everything it keeps alive between steps."""
        ...


class UnitwiseAdamW:
    """AdamW over groups of named adapter weights, each group with a learning rate of its own.

    Args:
        groups: For every group (a unit), its named parameters and its peak learning rate.
        settings: What the groups share.
    """

    def __init__(self, groups: Sequence[tuple[Mapping[str, Parameter], float]], settings: AdamWSettings) -> None:
        self.settings = settings
        self._groups = [(list(named.items()), lr) for named, lr in groups if named]
        self._masters: list[list[Tensor]] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        maps: dict[str, Tensor] = {}
        for named, lr in self._groups:
            masters = [p if p.dtype == torch.float32 else Parameter(p.detach().float()) for _, p in named]
            self._masters.append(list(masters))
            self._optimizers.append(_inner(masters, lr, settings, maps))

    def parameters(self) -> Iterator[Parameter]:
        for named, _ in self._groups:
            for _, parameter in named:
                yield parameter

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """One of torch or bitsandbytes for every group."""
        return tuple(self._optimizers)

    def tensors(self) -> list[Tensor]:
        """Everything it keeps alive between steps: masters and moments."""
        kept = [m for masters in self._masters for m in masters]
        return kept + [v for o in self._optimizers for state in o.state.values() for v in state.values()
                       if isinstance(v, Tensor)]

    @torch.no_grad()
    def step(self, lr_factor: float, gradient_scale: float) -> float:
        """One update; gradients are dropped. Returns the norm of the scaled gradient before clipping.

        Args:
            lr_factor: Schedule's factor on every group's peak learning rate.
            gradient_scale: Factor on the accumulated gradients (one over the number of target tokens).
        """
        norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in self.parameters() if p.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) * gradient_scale if norms else 0.0
        scale = gradient_scale
        if self.settings.clip and norm > self.settings.clip:
            scale *= self.settings.clip / norm
        for (named, lr), masters, optimizer in zip(self._groups, self._masters, self._optimizers, strict=True):
            for (_, working), master in zip(named, masters, strict=True):
                if working.grad is None:
                    raise ValueError("an adapter took no gradient: it is not part of the model that was trained")
                gradient = working.grad.float().mul_(scale) if working.grad.dtype != torch.float32 \
                    else working.grad.mul_(scale)
                working.grad = None
                master.grad = gradient
            optimizer.param_groups[0]["lr"] = lr * lr_factor
            optimizer.step()
            for (_, working), master in zip(named, masters, strict=True):
                master.grad = None
                if master is not working:
                    working.copy_(master)
        return norm

    @torch.no_grad()
    def zero_where(self, masks: Mapping[str, Tensor]) -> None:
        """Set elements of named parameters to zero, in the working copies and the masters."""
        for (named, _), masters in zip(self._groups, self._masters, strict=True):
            for (name, working), master in zip(named, masters, strict=True):
                if name in masks:
                    working.masked_fill_(masks[name], 0.0)
                    master.masked_fill_(masks[name], 0.0)

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, to continue from bit for bit."""
        out: dict[str, Tensor] = {}
        for (named, _), masters, optimizer in zip(self._groups, self._masters, self._optimizers, strict=True):
            for (name, _), master in zip(named, masters, strict=True):
                out[f"{name}|master"] = master.detach().clone()
                for key, value in optimizer.state.get(master, {}).items():
                    if key not in _MAPS:
                        out[f"{name}|{key}"] = torch.as_tensor(value).detach().clone()
        return out

    def accepts(self, state: Mapping[str, Tensor]) -> bool:
        """Whether ``state`` is of these parameters and this kind: every master and moment is there, in its shape."""
        moments = ("exp_avg", "exp_avg_sq") if self.settings.kind == "adamw" else ("state1", "state2")
        shapes = {f"{name}|{key}": p.shape for named, _ in self._groups for name, p in named
                  for key in ("master", *moments)}
        return (all(key in state and state[key].shape == shape for key, shape in shapes.items())
                and all(f"{name}|step" in state for named, _ in self._groups for name, _ in named))

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state`` for the same parameters."""
        for (named, _), masters, optimizer in zip(self._groups, self._masters, self._optimizers, strict=True):
            for index, ((name, working), master) in enumerate(zip(named, masters, strict=True)):
                master.copy_(state[f"{name}|master"].to(master.device))
                working.copy_(master)
                if self.settings.kind == "adamw":
                    moments = {key: state[f"{name}|{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
                    optimizer.state[master] = {
                        k: v if k == "step" and master.device.type == "cpu" else v.to(master.device)
                        for k, v in moments.items()}
                else:
                    _load_bitsandbytes(optimizer, master, index, name, state)


def _inner(masters: Sequence[Tensor], lr: float, settings: AdamWSettings,
           maps: dict[str, Tensor]) -> torch.optim.Optimizer:
    """The optimiser of one group; those of bitsandbytes share ``maps``, their tables."""
    options: dict[str, Any] = dict(lr=lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)
    if settings.kind == "adamw":
        return torch.optim.AdamW(masters, fused=True, **options)
    from bitsandbytes.optim import AdamW

    inner = AdamW(masters, optim_bits=8 if has_8bit_states(settings.kind) else 32, is_paged=is_paged(settings.kind),
                  **options)
    inner.name2qmap = maps
    made: torch.optim.Optimizer = inner
    return made


def _load_bitsandbytes(optimizer: Any, master: Tensor, index: int, name: str, state: Mapping[str, Tensor]) -> None:
    """Fill the buffers that the library makes for a parameter, pages included, from saved ones."""
    optimizer.init_state(optimizer.param_groups[0], master, 0, index)
    for key, value in optimizer.state[master].items():
        if key == "step":
            optimizer.state[master][key] = int(state[f"{name}|step"])
        elif key not in _MAPS:
            value.copy_(state[f"{name}|{key}"].to(value.device))
