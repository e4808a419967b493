"""Activation checkpointing under both names that transformers has given it: the older warns since 5.23."""

from types import SimpleNamespace
from typing import Any

import pytest

from qra_bo.finetune.models.activations import use_checkpointing


@pytest.mark.parametrize("name", ["gradient", "activation"])
def test_checkpointing_has_the_name_of_the_installed_transformers(name: str) -> None:
    calls: list[Any] = []
    deprecated = {f"gradient_checkpointing_{switch}": lambda *_: pytest.fail("deprecated")
                  for switch in ("enable", "disable")}
    model = SimpleNamespace(**{**deprecated, f"{name}_checkpointing_enable": calls.append,
                               f"{name}_checkpointing_disable": lambda: calls.append("off"),
                               "disable_input_require_grads": lambda: calls.append("no hook")})
    use_checkpointing(model)
    use_checkpointing(model, False)
    assert calls == [{"use_reentrant": False}, "off", "no hook"]
