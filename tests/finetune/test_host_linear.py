"""A dense base that stays in host memory: the same numbers, and one weight at a time on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from qra_bo.config import load_config, make_spec
from qra_bo.finetune.memory_probe import PeakTracker
from qra_bo.finetune.models.host_linear import HostLinear, is_too_large, keep_on_host
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.space import Allocation
from qra_bo.trials import TrialSpec
from tests.finetune.models import tiny_llama

WIDTH, LAYERS = 32, 6
OVERRIDES = ["+model=tiny", "data=tiny", "device=cpu", "train.batch=2", "train.length=32", "eval.sequences=8",
             "data.max_records=64", "quantizer.tokens=64", "bits=[2,4]"]


def chain(make: Callable[[nn.Linear], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    draw = torch.Generator().manual_seed(0)
    layers = []
    for _ in range(LAYERS):
        linear = nn.Linear(WIDTH, WIDTH, dtype=dtype).requires_grad_(False)
        linear.weight.copy_(torch.randn(WIDTH, WIDTH, generator=draw))
        linear.bias.copy_(torch.randn(WIDTH, generator=draw))
        layers.append(make(linear))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_the_layer(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = []
    for make in (nn.Identity, HostLinear):
        given = x.clone().requires_grad_(True)
        out = chain(lambda linear, make=make: linear if make is nn.Identity else make(linear), dtype)(given)
        out.square().sum().backward()
        found.append((out, given.grad))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


class OnDevice(PeakTracker):
    """Follows tensors of the meta device alone, which stands in for a GPU."""

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            super()._see(tensor)


def test_no_more_than_one_weight_is_on_the_device_at_a_time() -> None:
    x = torch.empty(1, WIDTH, device="meta").requires_grad_(True)
    model, weight, row = chain(HostLinear), WIDTH * WIDTH * 4, WIDTH * 4
    with OnDevice() as tracker:
        model(x).sum().backward()
    assert weight <= tracker.peak_bytes <= weight + (2 * LAYERS + 4) * row
    assert all(layer.weight.device.type == "cpu" for layer in model.to("meta"))


class Dense:
    """Counts, whenever a module runs, the decoder's linears whose 16-bit weights are on the device."""

    def __init__(self, oracle: Any) -> None:
        self.oracle, self.names, self.most = oracle, [m.name for m in oracle.bank.spec.linears], 0

    def __call__(self, *_: object) -> None:
        found = (self.oracle.model.get_submodule(name) for name in self.names)
        bases = [getattr(module, "base_layer", module) for module in found]
        self.most = max(self.most, sum(type(base) is nn.Linear for base in bases))


def test_a_base_in_host_memory_gives_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, *overrides: str) -> tuple[Any, float | None, int]:
        config = load_config([*OVERRIDES, *overrides]).to_dict()
        monkeypatch.setenv("QRA_BO_CACHE", str(tmp_path / name / "cache"))
        oracle: Any = make_oracle(config, str(tmp_path / name))
        n, count = len(oracle.units), Dense(oracle)
        request = TrialSpec(Allocation(("nf4",) * n, (4,) * n), 2, 2, 1, 2e-3)
        hook = register_module_forward_pre_hook(count)
        try:
            profile = oracle.profile(lambda *_: None)
            loss = oracle.evaluate(request, lambda *_: None).loss
            oracle.measure_peak(request.allocation.to_json(), 1, lambda *_: None)
            return profile, loss, count.most
        finally:
            hook.remove()
            oracle.close()

    on_device, loss, dense = run("device")
    assert dense == len(make_spec(load_config(OVERRIDES)).linears)
    assert loss is not None
    monkeypatch.setattr("qra_bo.pipeline.finetune_oracle.is_too_large", lambda *_: True)
    on_host, same, none = run("host", "worker.spill_above=1")  # its packed layers on disk
    assert (same, none) == (loss, 0)
    for field in ("quantization_sensitivity", "quantization_kl", "rank_sensitivity"):
        np.testing.assert_array_equal(getattr(on_host, field), getattr(on_device, field))
    assert on_host.base_loss == on_device.base_loss


@pytest.mark.parametrize(("free", "room", "expected"), [(100, None, False), (99, None, True), (100, 99, True),
                                                        (100, 200, False)])
def test_a_budget_keeps_the_base_off_a_large_device(free: int, room: int | None, expected: bool,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**12))
    assert is_too_large(50, torch.device("cuda"), room) is expected
    assert not is_too_large(10**15, torch.device("cpu"), 1)


def test_a_device_with_room_gets_copies_and_gives_them_back() -> None:
    model, spec = tiny_llama(dtype=torch.float16)
    names = [linear.name for linear in spec.linears]
    originals = {name: model.get_submodule(name) for name in names}
    keep_on_host(model, names)
    bank = LayerBank(model, spec, (), torch.bfloat16, "meta", dense_on_device=True)
    bank.restore_dense()
    for name in names:
        copy = model.get_submodule(name)
        assert type(copy) is nn.Linear
        assert (copy.weight.device.type, copy.weight.dtype) == ("meta", torch.bfloat16)
        assert bank.dense_weight(name).data_ptr() == originals[name].weight.data_ptr()
    copy = model.get_submodule(names[0])
    bank.restore_dense()
    assert model.get_submodule(names[0]) is copy  # copied once


@pytest.mark.gpu
def test_a_base_that_fills_a_gpu_stays_off_it() -> None:
    device = torch.device("cuda")
    free = torch.cuda.mem_get_info(device)[0]
    assert is_too_large(free, device, None)
    assert not is_too_large(free // 8, device, None)
    model = chain(HostLinear, torch.float64)  # in fp32 the order of sums shows in a chain whose outputs grow
    x = torch.randn(3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.to(device)(x.to(device)).cpu(), model(x))
