"""Mixtures of experts with one ``nn.Linear`` for each weight of an expert, so that it is quantised, adapted and saved
as any other linear; transformers holds the experts of a layer in two tensors, ``experts x out x in``."""

from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from qra_bo.space.decoder import is_stack, stack_of


class Experts:
    """The experts of a layer, one after the other (mixed into the class of transformers before it, whose gate it uses).

    Its children are ``"0"``, ``"1"``, ...: an expert each, with the linears ``gate_up`` (``2 width x d``) and ``down``
    (``d x width``). Each runs on the tokens that the router sends to it, so that a packed base has the dense weight of
    one expert's linear at a time.
    """

    def forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Map ``tokens x d`` to ``tokens x d``, by the experts (``tokens x k``, integers) and weights of every token;
        the same numbers as transformers' eager forward."""
        total = torch.zeros_like(hidden_states)
        for index in torch.unique(top_k_index).tolist():
            rows, place = torch.where(top_k_index == index)
            expert = self.get_submodule(str(index))
            out = expert.down(self._apply_gate(expert.gate_up(hidden_states[rows])))
            # Unlike index_add_, this keeps no copy of what is added for the backward; no row comes twice.
            total.index_put_((rows,), (out * top_k_weights[rows, place, None]).to(total.dtype), accumulate=True)
        return total


@cache
def mixed(mixin: type, kind: Any) -> type:
    """Return the class ``kind`` with ``mixin`` before it, under its own name."""
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})


def unfuse(model: nn.Module) -> None:
    """Turn every stack of experts of ``model`` into linears, in place; their weights share the stack's memory."""
    found: list[Any] = [module for module in model.modules() if is_stack(module)]
    for module in found:
        stacks = {"gate_up": module.gate_up_proj, "down": module.down_proj}
        del module.gate_up_proj, module.down_proj
        module.__class__ = mixed(Experts, cast(Hashable, type(module)))
        for index in range(len(stacks["down"])):
            expert = nn.Module()
            for name, stack in stacks.items():
                linear = nn.Linear(stack.shape[2], stack.shape[1], bias=False, device="meta")
                linear.weight = nn.Parameter(stack.detach()[index], requires_grad=stack.requires_grad)
                expert.add_module(name, linear)
            module.add_module(str(index), expert)


def fuse(model: nn.Module) -> None:
    """Undo ``unfuse`` in place, with the weights that the linears have now, so that transformers saves the model."""
    found: list[Any] = [module for module in model.modules() if isinstance(module, Experts)]
    for module in found:
        experts: list[Any] = [module.get_submodule(str(index)) for index in range(module.num_experts)]
        module.__class__ = type(module).__bases__[1]
        for name in ("gate_up", "down"):
            stack = torch.stack([getattr(expert, name).weight.detach() for expert in experts])
            module.register_parameter(f"{name}_proj", nn.Parameter(stack, requires_grad=False))
        for index in range(len(experts)):
            delattr(module, str(index))


def pooled(linears: Sequence[str], moments: MutableMapping[str, Tensor],
           tokens: Mapping[str, int]) -> Iterator[tuple[str, Tensor, int]]:
    """Yield the experts' ``linears`` of a layer with their second moments (``in x in``), taken out of ``moments``, and
    the tokens that these were seen on.

    Where fewer ``tokens`` reached a linear than it has inputs, its moments are singular and mostly chance: the mean
    moments of all experts' tokens stand for the missing ones, and for all where none came.
    """
    sums: dict[str, Tensor] = {}
    for name in moments.keys() & set(linears):
        stack = stack_of(name)
        sums[stack] = sums[stack].add_(moments[name]) if stack in sums else moments[name].clone()
    totals = {stack: sum(n for name, n in tokens.items() if stack_of(name) == stack) for stack in sums}
    for name in linears:
        total, stack, own = moments.pop(name, None), stack_of(name), tokens.get(name, 0)
        missing = max(0, len(sums[stack]) - own) / max(1, totals[stack])
        yield (name, missing * sums[stack] if total is None else total.add_(sums[stack], alpha=missing),
               totals[stack] if missing else own)
