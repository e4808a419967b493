"""Traced training steps replayed through the model of the CUDA caching allocator (``bench.memory.caching_allocator``).

A trial is followed on meta tensors from its first step, in which the optimiser makes its moments, to its evaluation.
The replay runs two trials one after the other, as a search does: the second finds the cache that the first has left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.memory.caching_allocator import Block, CachingAllocator
from bench.memory.trace import META, MetaTracker, StepTracer, Traced, TracedLora, _step, traced_optimizer
from qra_bo.finetune.data.records import TokenBlocks
from qra_bo.finetune.memory_probe import module_tensors
from qra_bo.finetune.training.loop import TrainSettings, held_out
from qra_bo.finetune.training.loss import token_losses
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.memory.activations import TrainShape
from qra_bo.space import Allocation, SearchSpace

CUBLAS_WORKSPACE = 32 << 20
"""Bytes of cuBLAS' workspace on sm90, the largest (``getChosenWorkspaceSize`` in ``ATen/cuda/CublasHandlePool.cpp``);
it comes from the caching allocator at the first product and stays."""
BATCHES = 3
"""Of an accumulating step that are followed; the others repeat the last."""
FLASH_ROWS = 128
"""Multiple to which flash attention's backward rounds lengths in its own fp32 buffers (``flash_api.cpp``)."""


@dataclass(frozen=True)
class Trial:
    """Sizes in bytes of what a trial allocates, in its order.

    Args:
        fixed: Unquantised weights and buffers of the model.
        linears: Packed tensors of every linear.
        adapters: Working copies of the adapters, then the optimiser's masters.
        events: ``(name, size)`` of an allocation, ``(name, 0)`` where it is freed.
        live: Largest number of bytes of live storages.
    """

    fixed: tuple[int, ...]
    linears: tuple[tuple[int, ...], ...]
    adapters: tuple[int, ...]
    events: tuple[tuple[int, int], ...]
    live: int


class Recorder(MetaTracker):  # type: ignore[no-untyped-call]
    """Tracker that writes down allocations and frees of meta storages."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self._names: dict[int, int] = {}
        self._made = 0

    def _see(self, tensor: Tensor) -> None:
        if not tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        super()._see(tensor)
        if known is None and size:
            self._names[key] = self.made(size)
        elif known is not None and known != size:
            raise AssertionError("a storage was resized")

    def made(self, size: int) -> int:
        """Note an allocation and return its name."""
        self._made += 1
        self.events.append((self._made, size))
        return self._made

    def freed(self, name: int) -> None:
        """Note that it was freed."""
        self.events.append((name, 0))

    def _release(self, key: int, _: object) -> None:
        super()._release(key, _)
        if key in self._names:
            self.freed(self._names.pop(key))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        inner = [self.made(size) for size in inner_sizes(func, args)]
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for name in inner:
            self.freed(name)
        return out


def inner_sizes(func: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the sizes of buffers that a kernel allocates and frees itself: those of flash attention's backward,
    ``dq_accum`` and ``softmax_d`` (``mha_bwd`` in ``flash_api.cpp``)."""
    if func is not torch.ops.aten._scaled_dot_product_flash_attention_backward.default:
        return ()
    batch, heads, length, width = args[1].shape
    rows = batch * heads * -(-length // FLASH_ROWS) * FLASH_ROWS
    return 4 * rows * (-(-width // 32) * 32), 4 * rows


class TrialTracer(StepTracer):
    """Tracer of whole trials: two steps with an evaluation after each.

    Attributes:
        trial: The trial that was traced last.
    """

    trial: Trial

    def _step(self, shape: TrainShape, optimizer: UnitwiseAdamW, start: float) -> Traced:
        kind, target = optimizer.settings.kind, torch.device(shape.device)
        groups = [({w.name: w.working for w in weights}, lr) for weights, lr, _ in optimizer.groups]
        del optimizer
        adapted = [m for m in self.model.modules() if isinstance(m, TracedLora)]
        own = {id(p) for m in adapted for p in (m.down, m.up)}
        states = tuple(tuple(_nbytes(t) for t in m.base.packed_state().values()) for m in adapted)
        of_linears = {t.untyped_storage()._cdata for m in adapted for t in module_tensors(m.base)}
        fixed = {t.untyped_storage()._cdata: _nbytes(t) for t in module_tensors(self.model)
                 if id(t) not in own and t.untyped_storage()._cdata not in of_linears}
        fresh = first_optimizer(groups, kind, target)
        working = [p for named, _ in groups for p in named.values()]
        with Recorder() as recorder:
            recorder.track_existing(self.model)
            recorder.track(w.master for w, _ in fresh.weights())
            recorder.events.clear()
            for _ in range(2):
                _one_step(self.model, fresh, shape)
                text = np.zeros((shape.batch, shape.length), dtype=np.int64)
                held_out(self.model, TokenBlocks(text, text),
                         TrainSettings(shape.batch, logits_chunk=shape.logits_chunk or shape.tokens), META)
            events, live = tuple(recorder.events), recorder.peak_bytes
        masters = [] if shape.compute_dtype_bytes == 4 else [_nbytes(w.master) for w, _ in fresh.weights()]
        self.trial = Trial(tuple(fixed.values()), states, (*map(_nbytes, working), *masters), events, live)
        return Traced(0, 0, 0, 0, 0, 0.0)

    def trial_of(self, space: SearchSpace, allocation: Allocation, shape: TrainShape) -> Trial:
        """Trace a trial; raises what ``trace`` raises."""
        self.trace(space, allocation, shape)
        return self.trial


def _nbytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _one_step(model: Any, optimizer: UnitwiseAdamW, shape: TrainShape) -> None:
    model.train()
    ids = torch.zeros(shape.batch, shape.length, dtype=torch.int64, device=META)
    labels = torch.zeros_like(ids)
    for _ in range(min(shape.accumulate, BATCHES)):
        total, count = token_losses(model, ids, labels, shape.logits_chunk or shape.tokens)
        total.backward()  # type: ignore[no-untyped-call]
        del total
    optimizer.step(1.0, 1.0 / count)


def first_optimizer(groups: Any, kind: str, target: torch.device) -> UnitwiseAdamW:
    """Return a traced optimiser that makes its moments in the first step."""
    made = traced_optimizer(groups, kind, target)
    for _, _, inner in made.groups:
        inner.state.clear()
        vars(inner)["step"] = partial(_fused_step if kind == "adamw" else _library_step, inner, target)
    return made


def _fused_step(inner: Any, _target: torch.device) -> None:
    """Make the moments as ``Adam._init_group`` does, whose own check does not know the meta device, and step."""
    for parameter in inner.param_groups[0]["params"]:
        if not inner.state[parameter]:
            inner.state[parameter] = {"step": torch.zeros((), device=META), "exp_avg": torch.zeros_like(parameter),
                                      "exp_avg_sq": torch.zeros_like(parameter)}
    torch.optim.AdamW.step(inner)


def _library_step(inner: Any, target: torch.device) -> None:
    """Make the moments as bitsandbytes does, and step."""
    group = inner.param_groups[0]
    for index, parameter in enumerate(group["params"]):
        if not inner.state[parameter]:
            inner.init_state(group, parameter, 0, index)
    _step(inner, target)


def reserved_bytes(trial: Trial, before: Sequence[Sequence[int]], expandable: bool) -> int:
    """Return the peak of reserved bytes of a trial after another one.

    The other is of the same shape, with packed tensors of the sizes ``before``. Its layers are replaced one by one,
    and the cache is emptied before the steps begin, as in ``FinetuneOracle`` and ``MemoryProbe``.
    """
    allocator = CachingAllocator(expandable)
    malloc, free = allocator.malloc, allocator.free
    [malloc(size) for size in trial.fixed]
    installed = [[malloc(size) for size in sizes] for sizes in before]
    malloc(CUBLAS_WORKSPACE)
    for last in (False, True):
        if last:
            for i, sizes in enumerate(trial.linears):
                made = [malloc(size) for size in sizes]
                for block in installed[i]:
                    free(block)
                installed[i] = made
        adapters = [malloc(size) for size in trial.adapters]
        allocator.empty_cache()
        allocator.reset_peak()
        live: dict[int, Block] = {}
        for name, size in trial.events:
            if size:
                live[name] = malloc(size)
            elif name in live:
                free(live.pop(name))
        for block in (*live.values(), *adapters):  # what is alive at a trial's end dies with its adapters
            free(block)
        allocator.empty_cache()
    return allocator.peak_reserved
