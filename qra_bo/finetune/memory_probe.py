"""Measured peaks of real training, by phase: allocator statistics on CUDA, live storages on a CPU.

A dispatch mode sees every tensor that an operator returns, forward and backward, on real, fake and meta tensors. Each
storage is counted once, when first seen, and released when it dies. Storages that an operator allocates and frees
without handing them out are not seen.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from qra_bo.finetune.adapters.lora import adapter_parameters
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import storage_bytes
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.trials import PhasePeak

WATCHED_STEP = 1
"""The second step is the first with both optimiser moments in place: its peak is that of all that follow."""
Mark = Callable[[str], None]
"""Called with the name of the phase that has just ended."""


class PeakTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager that follows live storages; several may be nested.

    Attributes:
        live_bytes: Bytes alive now of all storages seen.
        peak_bytes: Largest value of ``live_bytes`` since the start or the last ``reset_peak``.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[UntypedStorage]] = {}

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were alive before."""
        for tensor in tensors:
            self._see(tensor)

    def track_existing(self, model: nn.Module) -> None:
        """Count all tensors that a model holds now (see ``module_tensors``) and its gradients."""
        self.track([*module_tensors(model), *(p.grad for p in model.parameters() if p.grad is not None)])

    def reset_peak(self) -> None:
        """Start a new phase: the peak becomes what is alive now."""
        self.peak_bytes = self.live_bytes

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known == size:
            return
        if known is None:
            self._watched[key] = weakref.ref(storage, partial(self._release, key))
        self._sizes[key] = size  # a storage may have been resized
        self.live_bytes += size - (known or 0)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _release(self, key: int, _: object) -> None:
        self.live_bytes -= self._sizes.pop(key)
        del self._watched[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in (out,) if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out


def module_tensors(model: nn.Module) -> list[Tensor]:
    """Return every tensor that a model holds: parameters, buffers, tensors in attributes."""
    held = (tree_iter([*module.parameters(recurse=False), *module.buffers(recurse=False),
                       *(v for k, v in vars(module).items() if not k.startswith("_"))]) for module in model.modules())
    return list({id(leaf): leaf for leaf in chain.from_iterable(held) if isinstance(leaf, Tensor)}.values())


def release_unused(device: torch.device) -> None:
    """Free what only reference cycles keep alive, and return unused segments of the CUDA allocator to the device.

    A segment with one live tensor is not returned: cycles, such as those of an exception's traceback, come first.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


class MemoryProbe:
    """Measurement of one trial's memory in the configured scope.

    On CUDA the allocator counts every step at no cost. On a CPU following every storage makes a step up to twice as
    long: in the scope ``"peak"`` one step and one batch of the evaluation are followed.

    Args:
        optimizer: Its tensors are alive at the peak.
        bank: Quantised linears of the model, to which adapters are attached.
        scope: ``"peak"`` (all bytes alive at the peak of a step) or ``"stored"`` (quantised weights, metadata and
            adapters in 16 bits); ``None``: a scope of which training shows nothing.
    """

    def __init__(self, optimizer: UnitwiseAdamW, bank: LayerBank, scope: str | None) -> None:
        self.device, self.model, self.bank = bank.device, bank.model, bank
        self.optimizer, self.scope = optimizer, scope
        self.peaks: dict[str, PhasePeak] = {}  # the largest of every phase so far, in the order in which phases came
        if self.device.type == "cuda":
            self._read("load")
            release_unused(self.device)  # memory that loading reserved is no part of training
        else:
            with bank.only_packed():  # packed layers are handed over, so that loading needs no more than what stays
                self._note("load", storage_bytes(module_tensors(self.model)), None)

    @property
    def bytes(self) -> int | None:
        """Bytes in the configured scope; ``None`` where nothing was measured in it."""
        if self.scope == "stored":
            adapters = sum(p.numel() for pair in adapter_parameters(self.model).values() for p in pair.values())
            return self.bank.stored_bytes(self.bank.current) + 2 * adapters
        trained = [peak["allocated"] if peak["reserved"] is None else peak["reserved"]
                   for phase, peak in self.peaks.items() if phase != "load"]
        return max(trained) if self.scope == "peak" and "step" in self.peaks else None

    def watch(self, step: int) -> AbstractContextManager[Mark]:
        """Wrap the ``step``-th optimiser step (from 0) since the model was built; yield a function to end a phase."""
        return self._watched(step == WATCHED_STEP)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Wrap one batch of an evaluation."""
        with self._watched("step" in self.peaks and "evaluation" not in self.peaks) as mark:
            yield
            mark("evaluation")

    @contextmanager
    def _watched(self, follow: bool) -> Iterator[Mark]:
        """Yield a function to end a phase within the block, whose storages a CPU follows where ``follow`` says so."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            yield self._read
        elif follow and self.scope == "peak":
            with self.bank.only_packed(), PeakTracker() as tracker:
                tracker.track_existing(self.model)
                tracker.track(self.optimizer.tensors())

                def mark(phase: str) -> None:
                    self._note(phase, tracker.peak_bytes, None)
                    tracker.reset_peak()

                yield mark
        else:
            yield lambda phase: None

    def _read(self, phase: str) -> None:
        """Note what the CUDA allocator counted since the last time."""
        self._note(phase, int(torch.cuda.max_memory_allocated(self.device)),
                   int(torch.cuda.max_memory_reserved(self.device)))
        torch.cuda.reset_peak_memory_stats(self.device)

    def _note(self, phase: str, allocated: int, reserved: int | None) -> None:
        before = self.peaks.get(phase, PhasePeak(allocated=allocated, reserved=reserved))
        most = None if reserved is None or before["reserved"] is None else max(reserved, before["reserved"])
        self.peaks[phase] = PhasePeak(allocated=max(allocated, before["allocated"]), reserved=most)
