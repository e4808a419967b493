"""Activations of a decoder: inputs of its linears and layers, and forward passes that start at a layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def each_input(model: Any, linears: Sequence[str], ids: Tensor, use: Callable[[list[str], Tensor], None]) -> None:
    """Send ``ids`` (``n x length``) through the model once, and pass every input of linears to ``use``.

    ``use`` is called with the names of the linears that share an input and with that input, ``n x length x in``, in the
    order in which the model calls them; no more than one input is kept. The model's mode is restored.
    """
    sharing: list[str] = []
    last: list[Tensor] = []

    def pass_on() -> None:
        if sharing:
            use(list(sharing), last[0])
        sharing.clear()
        last.clear()

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if not last or last[0] is not args[0]:
                pass_on()
                last.append(args[0])
            sharing.append(name)
        return hook

    training = model.training
    handles = [model.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in linears]
    try:
        model.eval()
        model.get_decoder()(input_ids=ids, use_cache=False)
        pass_on()
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


class _Given(nn.Module):
    """Replacement of a decoder layer that returns its known output."""

    def __init__(self, layer: nn.Module, output: Tensor | None) -> None:
        super().__init__()
        self.__dict__["_layer"], self._output = layer, output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"], name)  # e.g. attention_type, read by the decoder's loop

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states if self._output is None else self._output


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the stack of decoder layers of a causal language model of transformers."""
    decoder = model.get_decoder()
    for name in ("layers", "h", "blocks"):
        if isinstance(getattr(decoder, name, None), nn.ModuleList):
            layers: nn.ModuleList = getattr(decoder, name)
            return layers
    raise TypeError(f"{type(decoder).__name__} has no known list of layers")


@torch.no_grad()
def layer_inputs(model: Any, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return every decoder layer's input and the final hidden states (after the last norm) of ``b x length`` ids."""
    inputs: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in decoder_layers(model)]
    try:
        final = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return inputs, final


@contextmanager
def starting_at(model: Any, index: int, hidden: Tensor) -> Iterator[None]:
    """Start the decoder at layer ``index`` with ``hidden`` (``b x length x d``) as that layer's input."""
    layers = decoder_layers(model)
    kept = [layers[i] for i in range(index)]
    for i in range(index):
        layers[i] = _Given(kept[i], hidden if i == index - 1 else None)
    try:
        yield
    finally:
        for i, layer in enumerate(kept):
            layers[i] = layer
