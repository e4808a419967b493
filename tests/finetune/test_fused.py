from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig

from qra_bo.finetune.adapters.lora import FusedLayer, adapter_parameters, attach, detach, fuse, lora_layers
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.memory.formats import parse_format
from tests.finetune.models import tiny_llama

IDS = torch.arange(24).reshape(2, 12) % 97


@pytest.fixture(params=["nf4", "int8", "hqq3", "fp16"])
def model(request: pytest.FixtureRequest) -> Iterator[torch.nn.Module]:
    dense, spec = tiny_llama()
    bank = LayerBank(dense, spec, (parse_format(request.param),), torch.float32, "cpu")
    bank.install({linear.name: request.param for linear in spec.linears})
    attach(dense, {linear.name: 3 for linear in spec.linears}, 2.0, 0, torch.float32)
    generator = torch.Generator().manual_seed(3)
    for pair in adapter_parameters(dense).values():
        pair["B"].data.copy_(torch.randn(pair["B"].shape, generator=generator) / 8)
    yield dense
    detach(dense)


def _loss_and_gradients(model: torch.nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    parameters = [p for pair in adapter_parameters(model).values() for p in pair.values()]
    loss = model(input_ids=IDS, labels=IDS).loss
    return loss, list(torch.autograd.grad(loss, parameters))


def _unfuse(model: torch.nn.Module) -> None:
    for layer in lora_layers(model).values():
        layer.__class__ = type(layer).__bases__[1]  # back to PEFT's own


def test_loss_and_gradients_are_those_of_peft(model: torch.nn.Module) -> None:
    fuse(model)  # a second time changes nothing
    assert all(isinstance(layer, FusedLayer) for layer in lora_layers(model).values())
    fused_loss, fused = _loss_and_gradients(model)
    _unfuse(model)
    loss, gradients = _loss_and_gradients(model)
    torch.testing.assert_close(fused_loss, loss, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(fused, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_autocast_computes_as_in_peft(model: torch.nn.Module) -> None:
    found = []
    for undo in (lambda _: None, _unfuse):
        undo(model)
        with torch.autocast("cpu", torch.bfloat16):  # TRL's default, and Trainer's with bf16=True
            found.append(_loss_and_gradients(model))
    (ours, fused), (theirs, gradients) = found
    assert torch.equal(ours, theirs)
    assert all(torch.equal(a, b) and a.any() for a, b in zip(fused, gradients, strict=True))


@pytest.mark.filterwarnings("ignore:Adapter default was active")
@pytest.mark.parametrize("switch", [
    lambda model: model.base_model.set_adapter(["default", "later"]), lambda model: model.set_adapter("later"),
    lambda model: model.delete_adapter("default")], ids=["both active", "the later active", "the first deleted"])
def test_adapters_added_later_compute_as_in_peft(switch: Callable[[Any], None]) -> None:
    dense, spec = tiny_llama()
    names = [linear.name for linear in spec.linears]
    bank = LayerBank(dense, spec, (parse_format("nf4"),), torch.float32, "cpu")
    bank.install(dict.fromkeys(names, "nf4"))
    wrapped = attach(dense, dict.fromkeys(names, 3), 2.0, 0, torch.float32)
    wrapped.add_adapter("later", LoraConfig(r=2, target_modules=names[:3], lora_dropout=0.5, init_lora_weights=False))
    switch(wrapped.train())
    found = []
    for undo in (lambda _: None, _unfuse):
        undo(dense)
        torch.manual_seed(0)  # of the dropout
        found.append(wrapped(input_ids=IDS).logits)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
