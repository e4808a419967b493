import pytest
import torch

from qra_bo.finetune.quantization.bank import LayerBank, refuse_reproducing_formats, relative_error
from qra_bo.finetune.quantization.base import packed
from qra_bo.memory.formats import parse_format
from qra_bo.utils.errors import ConfigError
from tests.conformance.quantizer import quantize
from tests.finetune.models import tiny_llama

FORMATS = tuple(parse_format(name) for name in ("hqq4", "nf4", "int8"))


def test_an_ordinary_base_passes() -> None:
    model, spec = tiny_llama()
    refuse_reproducing_formats(LayerBank(model, spec, FORMATS, torch.float32, "cpu"), FORMATS)


def test_a_reproduced_base_refuses_that_format_alone() -> None:
    model, spec = tiny_llama()
    fmt = FORMATS[0]
    for linear in spec.linears:
        module = model.get_submodule(linear.name)
        module.weight.data.copy_(packed(quantize(module, fmt, torch.float32)).unpack())
    bank = LayerBank(model, spec, FORMATS, torch.float32, "cpu")
    assert relative_error(bank, spec.linears[0].name, fmt) < 0.01
    with pytest.raises(ConfigError, match="hqq4 of 4 bits reproduces this base") as caught:
        refuse_reproducing_formats(bank, FORMATS)
    assert len(caught.value.problems) == 1
