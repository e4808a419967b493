"""The peak of real training steps, measured: allocator statistics on CUDA, live storages on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qra_bo.memory.tracker import PeakTracker
from qra_bo.oracle.adapters import adapter_parameters
from qra_bo.oracle.bank import LayerBank
from qra_bo.oracle.optimizer import Optimizer

WATCHED_STEP = 1
"""The second step is the first with both optimiser moments in place: its peak is that of all that follow."""


class MemoryProbe:
    """Measures one evaluation in the configured scope.

    On CUDA the allocator counts for free. On a CPU following every storage makes a step several times as long, so
    that it is done for one step, and only where it is asked for.

    Args:
        device: Where the model trains.
        model: The model with its adapters.
        optimizer: What it keeps between steps is alive at the peak.
        bank: Its quantised linears.
        scope: ``"peak"`` (everything alive at the peak of a step) or ``"stored"`` (quantised weights, metadata
            and adapters in 16 bits).
        follow: Whether to follow storages on a CPU; without it ``bytes`` stays ``None`` there.
    """

    def __init__(self, device: torch.device, model: Any, optimizer: Optimizer, bank: LayerBank,
                 scope: str, *, follow: bool) -> None:
        self.follow = follow
        self.device, self.model, self.optimizer, self.bank, self.scope = device, model, optimizer, bank, scope
        self.bytes: int | None = None
        if scope == "stored":
            adapters = sum(p.numel() for pair in adapter_parameters(model).values() for p in pair.values())
            self.bytes = sum(bank.stored_bytes(bank.current)) + 2 * adapters
        elif device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Wrap one optimiser step, the ``step``-th (from 0) since the model was built."""
        if self.scope == "stored" or (self.device.type == "cpu" and not (self.follow and step == WATCHED_STEP)):
            yield
            return
        if self.device.type == "cuda":
            yield
            self.bytes = int(torch.cuda.max_memory_reserved(self.device))
            return
        with self.bank.only_packed(), PeakTracker() as tracker:
            tracker.track_existing(self.model)
            tracker.track(self.optimizer.tensors())
            yield
        self.bytes = tracker.peak_bytes
