from collections.abc import Iterator

import pytest
import torch

from qra_bo.finetune.adapters.lora import (
    AdapterSettings,
    FusedLayer,
    adapter_parameters,
    attach,
    detach,
    fuse,
    lora_layers,
)
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.memory.formats import parse_format
from tests.finetune.models import tiny_llama

IDS = torch.arange(24).reshape(2, 12) % 97


@pytest.fixture(params=["nf4", "int8", "hqq3", "ref4", "fp16"])
def model(request: pytest.FixtureRequest) -> Iterator[torch.nn.Module]:
    dense, spec = tiny_llama()
    bank = LayerBank(dense, spec, (parse_format(request.param),), torch.float32, "cpu")
    bank.install({linear.name: request.param for linear in spec.linears})
    attach(dense, {linear.name: 3 for linear in spec.linears}, AdapterSettings(), 0, torch.float32)
    generator = torch.Generator().manual_seed(3)
    for pair in adapter_parameters(dense).values():
        pair["B"].data.copy_(torch.randn(pair["B"].shape, generator=generator) / 8)
    yield dense
    detach(dense)


def _loss_and_gradients(model: torch.nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    parameters = [p for pair in adapter_parameters(model).values() for p in pair.values()]
    loss = model(input_ids=IDS, labels=IDS).loss
    return loss, list(torch.autograd.grad(loss, parameters))


def test_loss_and_gradients_are_those_of_peft(model: torch.nn.Module) -> None:
    fused_loss, fused = _loss_and_gradients(model)
    for layer in lora_layers(model).values():
        layer.__class__ = type(layer).__bases__[1]  # back to PEFT's own
    loss, gradients = _loss_and_gradients(model)
    torch.testing.assert_close(fused_loss, loss, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(fused, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_every_layer_is_fused(model: torch.nn.Module) -> None:
    fuse(model)  # a second time changes nothing
    assert all(isinstance(layer, FusedLayer) for layer in lora_layers(model).values())
