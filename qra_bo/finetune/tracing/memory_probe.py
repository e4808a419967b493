"""Measured peaks of real training, by phase: allocator statistics on CUDA, live storages on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qra_bo.finetune.adapters.lora import adapter_parameters
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.tracing.tracker import PeakTracker, live_bytes
from qra_bo.finetune.training.optimizer import Optimizer
from qra_bo.trials import PhasePeak

WATCHED_STEP = 1
"""The second step is the first with both optimiser moments in place: its peak is that of all that follow."""
Mark = Callable[[str], None]
"""Called with the name of the phase that has just ended."""


def begin_load(device: torch.device) -> None:
    """Begin the phase ``load``, which ends when a probe is made."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class MemoryProbe:
    """Measurement of one trial's memory in the configured scope.

    On CUDA the allocator counts every step at no cost. On a CPU following every storage makes a step several times as
    long: one step and one batch of the evaluation are followed, and only with ``follow``.

    Args:
        device: Where the model trains.
        model: The model with its adapters.
        optimizer: Its tensors are alive at the peak.
        bank: Its quantised linears.
        scope: ``"peak"`` (everything alive at the peak of a step) or ``"stored"`` (quantised weights, metadata
            and adapters in 16 bits).
        follow: Whether to follow storages on a CPU; without it only ``load`` is known there.
    """

    def __init__(self, device: torch.device, model: Any, optimizer: Optimizer, bank: LayerBank,
                 scope: str, *, follow: bool) -> None:
        self.device, self.model, self.optimizer, self.bank, self.scope = device, model, optimizer, bank, scope
        self.follow = follow
        self._found: dict[str, PhasePeak] = {}
        if device.type == "cuda":
            self._read("load")
            torch.cuda.empty_cache()  # memory that loading reserved is no part of training
        else:
            with bank.only_packed():  # packed layers are handed over, so that loading needs no more than what stays
                self._note("load", live_bytes(model), None)

    @property
    def peaks(self) -> tuple[PhasePeak, ...]:
        """The largest peak of every phase so far, in the order in which phases came."""
        return tuple(self._found.values())

    @property
    def bytes(self) -> int | None:
        """Bytes in the configured scope; ``None`` where no step was measured."""
        if self.scope == "stored":
            adapters = sum(p.numel() for pair in adapter_parameters(self.model).values() for p in pair.values())
            return sum(self.bank.stored_bytes(self.bank.current)) + 2 * adapters
        trained = [p.allocated if p.reserved is None else p.reserved for p in self.peaks if p.phase != "load"]
        return max(trained) if "step" in self._found else None

    @contextmanager
    def watch(self, step: int) -> Iterator[Mark]:
        """Wrap the ``step``-th optimiser step (from 0) since the model was built; yield a function to end a phase."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            yield self._read
            return
        if not (self.follow and step == WATCHED_STEP):
            yield lambda phase: None
            return
        with self._followed() as tracker:
            def mark(phase: str) -> None:
                self._note(phase, tracker.peak_bytes, None)
                tracker.reset_peak()

            yield mark

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Wrap one batch of an evaluation."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            self._read("evaluation")
        elif self.follow and "step" in self._found and "evaluation" not in self._found:
            with self._followed() as tracker:
                yield
            self._note("evaluation", tracker.peak_bytes, None)
        else:
            yield

    @contextmanager
    def _followed(self) -> Iterator[PeakTracker]:
        with self.bank.only_packed(), PeakTracker() as tracker:
            tracker.track_existing(self.model)
            tracker.track(self.optimizer.tensors())
            yield tracker

    def _read(self, phase: str) -> None:
        """Note what the CUDA allocator counted since the last time."""
        self._note(phase, int(torch.cuda.max_memory_allocated(self.device)),
                   int(torch.cuda.max_memory_reserved(self.device)))
        torch.cuda.reset_peak_memory_stats(self.device)

    def _note(self, phase: str, allocated: int, reserved: int | None) -> None:
        before = self._found.get(phase, PhasePeak(phase, allocated, reserved))
        most = None if reserved is None or before.reserved is None else max(reserved, before.reserved)
        self._found[phase] = PhasePeak(phase, max(allocated, before.allocated), most)
