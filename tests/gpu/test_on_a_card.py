"""What a card must do as a CPU does: packing, a trial, recovery from a lack of memory, loading.

Each test runs on the CPU in ``make test``, which shows that it runs, and on CUDA in ``make test-gpu``.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import qra_bo
from qra_bo.config import load_config
from qra_bo.finetune.manifest import PROBE, probe_difference
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.quantization.base import backend_of
from qra_bo.memory.formats import FORMATS
from qra_bo.oracle.protocol import quiet
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.space import Allocation
from qra_bo.trials import TrialSpec, TrialState
from scripts.gpu_hour.layers import CPU, layer_of, relative
from scripts.gpu_hour.stage import Stage
from scripts.gpu_hour.trials import out_of_memory
from tests.conformance.quantizer import make_linear
from tests.finetune.models import final_options

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU")])]
SIDES = (128, 512)
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
"""Relative differences by type: a product that is rounded once more or less."""
MIXED = Allocation(("nf4", "int8", "hqq3", "hqq2"), (4, 2, 3, 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_are_those_of_the_cpu(name: str, device: str) -> None:
    fmt, weight, there = FORMATS[name], make_linear(*SIDES).weight.detach(), torch.device(device)
    on_cpu = backend_of(fmt).pack(weight, fmt, CPU)
    for dtype, rtol in CLOSE.items():
        expected = layer_of(on_cpu, fmt, SIDES, dtype, CPU).unpack()
        found = layer_of(on_cpu, fmt, SIDES, dtype, there).unpack().cpu()
        torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-8)
    own = {key: tensor.cpu() for key, tensor in backend_of(fmt).pack(weight, fmt, there).items()}
    assert {k: (t.shape, t.dtype) for k, t in own.items()} == {k: (t.shape, t.dtype) for k, t in on_cpu.items()}
    errors = [relative(layer_of(state, fmt, SIDES, torch.float32, CPU).unpack(), weight) for state in (own, on_cpu)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02, abs=1e-6)


def oracle_on(device: str, folder: Path) -> Any:
    config = load_config(["+model=tiny", "data=tiny", f"device={device}", "train.batch=2", "train.length=32",
                          "eval.sequences=8", "data.max_records=64", "quantizer.rounding=rtn"])
    return make_oracle(config.to_dict(), str(folder))


@pytest.mark.parametrize("device", DEVICES)
def test_trial_learns_and_repeats(device: str, tmp_path: Path) -> None:
    oracle: FinetuneOracle = oracle_on(device, tmp_path)
    oracle.checkpoints = None
    request = TrialSpec(MIXED, 12, 12, 5, 2e-3)
    before = oracle.evaluate(replace(request, steps=1, schedule_steps=1, learning_rate=2e-9), quiet)
    first, second = (oracle.evaluate(request, quiet) for _ in range(2))
    assert first.state is second.state is TrialState.OK
    assert first.loss < before.loss
    assert second.loss == pytest.approx(first.loss, abs=1e-3)  # kernels of a GPU may add in another order
    assert list(first.peaks) == ["load", "forward", "backward", "step", "evaluation"]
    assert first.measured_bytes is not None
    assert all((peak["reserved"] is not None) == (device == "cuda") for peak in first.peaks.values())


@pytest.mark.parametrize("device", DEVICES)
def test_clean_trial_after_a_lack_of_memory_is_the_one_before(device: str, tmp_path: Path) -> None:
    rows = list(out_of_memory(Stage(torch.device(device), True, tmp_path)))
    assert [row["place"] for row in rows] == ["install", "forward", "backward"]
    for row in rows:
        assert row["state"] == "oom", row
        assert row["difference"] == pytest.approx(0, abs=0 if device == "cpu" else 1e-3), row
        assert row["allocated_after"] <= row["allocated_before"] * 1.01 or device == "cpu", row


@pytest.mark.parametrize("device", DEVICES)
def test_loaded_result_has_the_logits_of_the_run(device: str, tmp_path: Path) -> None:
    oracle = oracle_on(device, tmp_path)
    config = load_config(["+model=tiny", "data=tiny"])
    oracle.finalise(MIXED.to_json(), final_options(steps=2), 3, 2e-3, str(tmp_path), dict(config.model), quiet)
    for target in dict.fromkeys((device, "cpu")):
        model, _ = qra_bo.load(tmp_path, device=target)
        apart = probe_difference(model, tmp_path / PROBE, torch.device(target))
        assert apart <= (0 if device == "cpu" else 0.05)
