"""Activation checkpointing of decoder layers, by the name that the installed transformers gives it."""

from typing import Any


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
