"""Inputs of the dense model's linears on a text."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Made = TypeVar("Made")


@torch.no_grad()
def each_input(model: Any, linears: Sequence[str], ids: Tensor, make: Callable[[str, Tensor], Made],
               use: Callable[[str, Made], None]) -> None:
    """Send ``ids`` (``n x length``) through the model once, and pass ``make(input)`` of every linear to ``use``.

    Linears that share an input share its result; no more than one is kept.

    Args:
        model: In any mode, which is restored.
        linears: Their names.
        ids: On the model's device.
        make: Called with the first linear of an input and the input, ``n x length x in``.
        use: Called with every linear, in the order in which the model calls them.
    """
    last: list[Any] = [None, None]

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if last[0] is not args[0]:
                last[:] = args[0], make(name, args[0])
            use(name, last[1])
        return hook

    training = model.training
    handles = [model.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in linears]
    try:
        model.eval()
        model.get_decoder()(input_ids=ids, use_cache=False)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
