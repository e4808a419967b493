"""What exceptions say of memory and devices; a worker whose device is lost ends, so that another one takes over."""

import os
from typing import Any

import pytest
import torch

from qra_bo.execution import worker
from qra_bo.oracle.protocol import TRAINING, StopRequested, quiet
from qra_bo.space import uniform
from qra_bo.trials import TrialSpec
from qra_bo.utils.errors import is_device_lost, is_out_of_memory
from tests.study.oracles import PlantedOracle


class AcceleratorError(RuntimeError):
    """As torch names what leaves a CUDA context unusable."""


@pytest.mark.parametrize(("error", "starved", "lost"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True, False),
    (RuntimeError("CUDA error: out of memory"), True, False),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True, False),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True, False),
    (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `create`"), True, False),
    (RuntimeError("Triton Error [CUDA]: out of memory"), True, False),
    (RuntimeError("CUDA driver error: out of memory"), True, False),
    (RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"), True,
     False),
    (RuntimeError("CUDA driver error: unknown error"), False, False),
    (RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnSpotrf`"), False, False),
    (MemoryError(), True, False),
    (AcceleratorError("an illegal memory access was encountered"), False, True),
    (RuntimeError("CUDA error: unspecified launch failure"), False, True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
    (ValueError("CUDA error: not torch's"), False, False),
    (StopRequested(), False, False)])
def test_errors_are_told_by_name_and_text(error: BaseException, starved: bool, lost: bool) -> None:
    assert (is_out_of_memory(error), is_device_lost(error)) == (starved, lost)


def test_a_worker_whose_device_is_lost_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(PlantedOracle):
        def evaluate(self, *_: Any) -> Any:
            raise AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", end)
    request = TrialSpec(uniform(4, "nf4", 4), 8, 8, 1, 2e-3).to_json()
    with pytest.raises(SystemExit) as ended:
        worker.serve(Broken(), {"op": "evaluate", "spec": request}, worker.Reporter(quiet, bool))
    assert ended.value.code == worker.DEVICE_LOST
    assert "its GPU context is lost: CUDA error: an illegal memory access was encountered" in caplog.text


def test_only_steps_say_how_far_an_evaluation_got() -> None:
    reporter = worker.Reporter(quiet, bool)
    for what, done in (("choose codes", 500), (TRAINING, 3), ("evaluate", 70)):
        reporter(what, done, 1000)
    assert reporter.done == 3
