"""Activation checkpointing under both names that transformers has given it."""

from typing import Any

import pytest

from qra_bo.finetune.models.checkpointing import use_checkpointing


class Older:
    """The methods of a model of transformers 5.0 to 5.22."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        self.calls.append(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.calls.append("off")

    def disable_input_require_grads(self) -> None:
        self.calls.append("no hook")


class Newer(Older):
    """The methods since 5.23, where the older ones warn."""

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: Any = None) -> None:
        super().gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def activation_checkpointing_disable(self) -> None:
        super().gradient_checkpointing_disable()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        pytest.fail("deprecated")

    def gradient_checkpointing_disable(self) -> None:
        pytest.fail("deprecated")


@pytest.mark.parametrize("model", [Older(), Newer()], ids=["older", "newer"])
def test_checkpointing_has_the_name_of_the_installed_transformers(model: Older) -> None:
    use_checkpointing(model)
    use_checkpointing(model, False)
    assert model.calls == [{"use_reentrant": False}, "off", "no hook"]
