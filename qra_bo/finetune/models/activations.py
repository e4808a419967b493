"""Activations of a decoder: inputs of its layers, forward passes that start at a layer, and layers that recompute them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class _Given(nn.Module):
    """Replacement of a decoder layer that returns its known output, or else what it is given; first of a tuple where
    the layer returns one."""

    def __init__(self, layer: nn.Module, output: Tensor | None, in_tuple: bool) -> None:
        super().__init__()
        self.__dict__["_layer"], self._output, self._in_tuple = layer, output, in_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"], name)  # e.g. attention_type, read by the decoder's loop

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        output = hidden_states if self._output is None else self._output
        return (output, None) if self._in_tuple else output


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the stack of decoder layers of a causal language model of transformers."""
    decoder = model.get_decoder()
    for name in ("layers", "h", "blocks"):
        if isinstance(getattr(decoder, name, None), nn.ModuleList):
            layers: nn.ModuleList = getattr(decoder, name)
            return layers
    raise TypeError(f"{type(decoder).__name__} has no known list of layers")


_IN_TUPLE: WeakKeyDictionary[nn.ModuleList, bool] = WeakKeyDictionary()


class _Answered(Exception):
    """The first layer has returned."""


@contextmanager
def _replaced(model: Any, outputs: Mapping[int, Tensor | None]) -> Iterator[None]:
    """Let layers return ``outputs`` within the block, in the form of the model's own layers: some return tuples
    (Falcon's). The form is asked for once, with one token."""
    layers = decoder_layers(model)
    if layers not in _IN_TUPLE:
        def note(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            _IN_TUPLE[layers] = isinstance(output, tuple)
            raise _Answered

        handle = layers[0].register_forward_hook(note)
        try:
            with torch.no_grad():
                model.get_decoder()(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
        except _Answered:
            pass
        finally:
            handle.remove()
    kept = {i: layers[i] for i in outputs}
    try:
        for i, output in outputs.items():
            layers[i] = _Given(kept[i], output, _IN_TUPLE[layers])
        yield
    finally:
        for i, original in kept.items():
            layers[i] = original


@contextmanager
def starting_at(model: Any, index: int, hidden: Tensor) -> Iterator[None]:
    """Start the decoder at layer ``index`` with ``hidden`` (``b x length x d``) as that layer's input.

    Layer 0 gets the embeddings, whatever ``hidden`` is.
    """
    with _replaced(model, {i: hidden if i == index - 1 else None for i in range(index)}):
        yield


def run_layer(model: Any, ids: Tensor, index: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of layer ``index`` alone on its input ``hidden``, and what the final norm makes of it, all
    ``b x length x d``. Gradients pass to ``hidden`` where they are enabled, and end at the output of layer 0, which
    gets the embeddings of ``ids`` (``b x length``)."""
    outputs = {i: hidden if i == index - 1 else None for i in range(len(decoder_layers(model))) if i != index}
    taken: list[Tensor] = []

    def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        found = output[0] if isinstance(output, tuple) else output
        taken.append(found.requires_grad_() if torch.is_grad_enabled() else found)

    with _replaced(model, outputs):
        handle = decoder_layers(model)[index].register_forward_hook(leave)
        try:
            final: Tensor = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        finally:
            handle.remove()
    return taken[0], final


def recomputes(model: Any) -> bool:
    """Whether ``use_checkpointing`` is in force."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    return bool(getattr(model, f"is_{name}_checkpointing"))


def use_checkpointing(model: Any, on: bool = True) -> None:
    """Recompute every decoder layer in the backward pass (or keep activations again), without reentrant autograd.

    Transformers renamed the methods in 5.23; the old names are deprecated since.
    """
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{name}_checkpointing_disable")()
        model.disable_input_require_grads()
