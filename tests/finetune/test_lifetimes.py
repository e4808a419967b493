"""Lifetimes without the garbage collector: nothing of a trial is alive after it, whether it ended well or not.

On a device every survivor takes memory that the next trial was promised.
"""

import gc
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from qra_bo.finetune import memory_probe
from qra_bo.finetune.adapters import lora
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import PackedLinear, backend_of
from qra_bo.finetune.training import loop
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.memory.formats import parse_format
from qra_bo.space import Allocation
from qra_bo.trials import TrialSpec, TrialState
from tests.finetune.models import failing
from tests.finetune.test_finetune import make, quiet

OF_A_TRIAL = (LoraLayer, PeftModel, UnitwiseAdamW, torch.optim.Optimizer, memory_probe.MemoryProbe)
MIXED = Allocation(("nf4", "hqq3"), (3, 1))
REQUEST = TrialSpec(MIXED, 3, 3, 5, 2e-3)


@pytest.fixture(autouse=True, scope="module")
def older_objects_left_out() -> None:
    gc.collect()
    gc.freeze()  # gc.get_objects passes over all that was made before, and later collections do


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(*kinds: type) -> list[Any]:
    """Return live instances of ``kinds``."""
    return [o for o in gc.get_objects() if issubclass(type(o), kinds)]


def packed_layers(model: torch.nn.Module) -> set[int]:
    return {id(m) for m in model.modules() if isinstance(m, PackedLinear)}


class Dropping(dict[Any, Any]):
    """A cache that keeps nothing: a bank on CUDA holds only the layers that are installed."""

    def __setitem__(self, key: Any, value: Any) -> None:
        return None


def make_device_like() -> FinetuneOracle:
    """Return an oracle whose bank keeps packed tensors, and layers only while they are installed."""
    oracle = make()
    oracle.bank._layers = Dropping()
    return oracle


def assert_no_survivors(oracle: FinetuneOracle) -> None:
    assert alive(*OF_A_TRIAL) == []
    assert {id(layer) for layer in alive(PackedLinear)} == packed_layers(oracle.model)


@pytest.mark.parametrize("name", ["nf4", "nf4-nodq", "int8", "hqq3", "hqq6", "sym5-g64", "int4-g32", "fp16"])
def test_packed_layer_dies_with_its_last_reference(name: str) -> None:
    fmt = parse_format(name)
    state = backend_of(fmt).pack(torch.randn(128, 128), fmt, torch.device("cpu"))
    layer = backend_of(fmt).build(state, fmt, (128, 128), None, torch.float32)
    layer(torch.randn(2, 128, requires_grad=True)).sum().backward()
    del layer
    assert alive(PackedLinear) == []


FULL = partial(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB.")
LINEARS = 14
PLACES: dict[str, tuple[Any, str, int]] = {
    "first layer of the install": (LayerBank, "_built", 1),
    "middle of the install": (LayerBank, "_built", LINEARS // 2),
    "middle of PEFT's own attach": (LoraLayer, "update_layer", LINEARS // 2),
    "initial weights of an adapter": (lora, "Parameter", LINEARS),
    "fusing": (lora, "fuse", 1),
    "optimiser": (UnitwiseAdamW, "__init__", 1),
    "forward": (PackedLinear, "weight_matrix", LINEARS // 2),
    "backward": (PackedLinear, "weight_matrix", LINEARS + LINEARS // 2),
    "optimiser step": (UnitwiseAdamW, "step", 2),
    "evaluation": (loop, "_sequence_sums", 1)}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_alive_after_an_injected_out_of_memory_error(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = make_device_like()
    clean = oracle.evaluate(REQUEST, quiet)
    oracle.bank.restore_dense()
    owner, name, at = PLACES[place]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), at, FULL))
        failed = oracle.evaluate(REQUEST, quiet)
        assert failed.state is TrialState.OOM
        assert_no_survivors(oracle)
    again = oracle.evaluate(REQUEST, quiet)
    assert (again.loss, again.curve) == (clean.loss, clean.curve)
    assert_no_survivors(oracle)
