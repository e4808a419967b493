"""Whole trials: memory that alternating ones leave, equal ones twice, and recovery from a lack of memory."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import PackedLinear
from qra_bo.trials import TrialResult, TrialSpec
from scripts.gpu_hour.stage import RATE, Stage, mixed, quiet

TRIALS, TINY_TRIALS = 10, 4


def alternating(stage: Stage) -> Iterator[dict[str, Any]]:
    """Evaluate two allocations in turn: the bytes that are allocated after each trial must not grow."""
    oracle = stage.oracle(stage.config(16 if stage.tiny else 512, "train.checkpointing=true"))
    for trial in range(TINY_TRIALS if stage.tiny else TRIALS):
        found = oracle.evaluate(TrialSpec(mixed(oracle, trial % 2), 2, 2, trial, RATE), quiet)
        yield {"trial": trial, "allocation": trial % 2, "state": found.state.value, "message": found.message,
               "allocated_bytes": stage.allocated(), "peak_bytes": found.measured_bytes, "seconds": found.seconds}


def repeats(stage: Stage) -> Iterator[dict[str, Any]]:
    """Run the same trial twice at two lengths; whether the losses are equal to the last bit."""
    for length in (16, 32) if stage.tiny else (128, 512):
        oracle = stage.oracle(stage.config(length))
        request = TrialSpec(mixed(oracle), 4, 4, 3, RATE)
        first, second = (oracle.evaluate(request, quiet) for _ in range(2))
        yield {"length": length, **compared(first, second)}
        del oracle
        stage.release()


def compared(first: TrialResult, second: TrialResult) -> dict[str, Any]:
    """Return the states and losses of two trials, and whether the losses are equal to the last bit."""
    apart = None if first.loss is None or second.loss is None else abs(first.loss - second.loss)
    return {"first_state": first.state.value, "second_state": second.state.value, "first_loss": first.loss,
            "second_loss": second.loss, "difference": apart, "equal": apart == 0}


def too_much(device: torch.device) -> int:
    """Return bytes that ``device`` can't give: all that a GPU has, of which the model holds a part."""
    return 2**50 if device.type == "cpu" else int(torch.cuda.get_device_properties(device).total_memory)


def failing(function: Callable[..., Any], at: int, device: torch.device) -> Callable[..., Any]:
    """Return ``function``, whose call number ``at``, from 1, demands more memory than ``device`` has."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            torch.empty(too_much(device), dtype=torch.uint8, device=device)
        return function(*args, **kwargs)

    return wrapped


def out_of_memory(stage: Stage) -> Iterator[dict[str, Any]]:
    """Run out of memory while layers are installed, forward and backward; a clean trial follows each time."""
    oracle = stage.oracle(stage.config(16 if stage.tiny else 128))
    request, linears = TrialSpec(mixed(oracle), 4, 4, 3, RATE), len(oracle.bank.spec.linears)
    clean, allocated = oracle.evaluate(request, quiet), stage.allocated()
    places: dict[str, tuple[Any, str, int]] = {
        "install": (LayerBank, "_built", linears // 2), "forward": (PackedLinear, "weight_matrix", linears // 2),
        "backward": (PackedLinear, "weight_matrix", linears + linears // 2)}
    for place, (owner, name, at) in places.items():
        oracle.evaluate(TrialSpec(mixed(oracle, 1), 1, 1, 4, RATE), quiet)
        oracle.bank.restore_dense()
        oracle.bank._layers.clear()  # on a CPU a bank keeps the layers that it built
        with mock.patch.object(owner, name, failing(getattr(owner, name), at, stage.device)):
            failed = oracle.evaluate(request, quiet)
        row = {"place": place, "state": failed.state.value, "message": failed.message}
        after = oracle.evaluate(request, quiet)
        yield {**row, **compared(clean, after), "allocated_before": allocated, "allocated_after": stage.allocated()}
