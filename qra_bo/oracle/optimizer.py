"""AdamW with fp32 master weights, one unit of the decoder at a time.

Working copies of the adapters have the compute type, so that no activation is cast; masters and moments are
fp32. Updating unit by unit keeps the fp32 gradients of one unit alive instead of all: 16 bytes a parameter in
bf16 (2 working, 2 gradient, 4 master, 8 moments), and 16 in fp32 (working copy and master are one).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter


@dataclass(frozen=True, slots=True)
class AdamWSettings:
    """Hyperparameters that all units share.

    Args:
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled, times the learning rate.
        clip: Largest norm of the whole gradient; 0 leaves it as it is.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0


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
        self._optimizers: list[torch.optim.AdamW] = []
        for named, lr in self._groups:
            masters = [p if p.dtype == torch.float32 else Parameter(p.detach().float()) for _, p in named]
            self._masters.append(list(masters))
            self._optimizers.append(torch.optim.AdamW(masters, lr=lr, betas=settings.betas, eps=settings.eps,
                                                      weight_decay=settings.weight_decay, fused=True))

    def parameters(self) -> Iterator[Parameter]:
        for named, _ in self._groups:
            for _, parameter in named:
                yield parameter

    @property
    def optimizers(self) -> tuple[torch.optim.AdamW, ...]:
        """One of torch for every group."""
        return tuple(self._optimizers)

    def tensors(self) -> list[Tensor]:
        """Everything it keeps alive between steps: masters and moments."""
        kept = [m for masters in self._masters for m in masters]
        return kept + [v for o in self._optimizers for state in o.state.values() for v in state.values()]

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
                    out[f"{name}|{key}"] = value.detach().clone()
        return out

    def accepts(self, state: Mapping[str, Tensor]) -> bool:
        """Whether ``state`` is of these parameters: every master and moment is there, in its shape."""
        shapes = {f"{name}|{key}": p.shape for named, _ in self._groups for name, p in named
                  for key in ("master", "exp_avg", "exp_avg_sq")}
        return (all(key in state and state[key].shape == shape for key, shape in shapes.items())
                and all(f"{name}|step" in state for named, _ in self._groups for name, _ in named))

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of ``state`` for the same parameters."""
        for (named, _), masters, optimizer in zip(self._groups, self._masters, self._optimizers, strict=True):
            for (name, working), master in zip(named, masters, strict=True):
                master.copy_(state[f"{name}|master"].to(master.device))
                working.copy_(master)
                moments = {key: state[f"{name}|{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
                optimizer.state[master] = {k: v if k == "step" and master.device.type == "cpu" else v.to(master.device)
                                           for k, v in moments.items()}
