"""Live bytes of tensor storages while a program runs: the peak of a real training step, without a GPU.

A dispatch mode sees every tensor that an operator returns, forward and backward, on real, fake and meta tensors.
Each storage is counted once, when first seen, and released when it dies. What an operator allocates and frees
within itself, without handing it out, is not seen.
"""

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager that follows live storages; several may be nested.

    Args:
        rounding: Allocation granularity in bytes: sizes are rounded up to its multiples (1 counts exactly,
            512 is CUDA's caching allocator).

    Attributes:
        live_bytes: Bytes alive now of all storages seen.
        peak_bytes: Largest value of ``live_bytes`` since the start or the last ``reset_peak``.
        peak_operator: Operator whose result reached the peak.
    """

    def __init__(self, rounding: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rounding = rounding
        self.live_bytes = 0
        self.peak_bytes = 0
        self._peak_operator: object = ""
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[UntypedStorage]] = {}

    @property
    def peak_operator(self) -> str:
        return str(self._peak_operator)

    def track(self, tensors: Iterable[Tensor], operator: str = "given") -> int:
        """Count tensors that were alive before, e.g. a model's; returns the bytes that they added."""
        before = self.live_bytes
        for tensor in tensors:
            self._see(tensor, operator)
        return self.live_bytes - before

    def track_existing(self, model: nn.Module) -> int:
        """Count everything that a model holds now (see ``module_tensors``) and its gradients; returns the bytes."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return self.track([*module_tensors(model), *gradients], "model")

    def reset_peak(self) -> None:
        """Start a new phase: the peak becomes what is alive now."""
        self.peak_bytes = self.live_bytes

    def _see(self, tensor: Tensor, operator: object) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // self.rounding) * self.rounding
        known = self._sizes.get(key)
        if known == size:
            return
        if known is None:
            self._watched[key] = weakref.ref(storage, partial(self._release, key))
        self._sizes[key] = size  # a storage may have been resized
        self.live_bytes += size - (known or 0)
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self._peak_operator = self.live_bytes, operator

    def _release(self, key: int, _: object) -> None:
        self.live_bytes -= self._sizes.pop(key)
        del self._watched[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in (out,) if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(leaf, Tensor):
                self._see(leaf, func)
        return out


def module_tensors(model: nn.Module) -> list[Tensor]:
    """Return every tensor that a model holds: parameters, buffers, quantisation states, tensors in attributes."""
    found: list[Tensor] = []
    seen: set[int] = set()
    for module in model.modules():
        for holder in (*module.parameters(recurse=False), *module.buffers(recurse=False),
                       *(v for k, v in vars(module).items() if not k.startswith("_"))):
            _collect(holder, found, seen)
    return found


def _collect(value: Any, found: list[Tensor], seen: set[int]) -> None:
    if id(value) in seen or isinstance(value, nn.Module):
        return
    if isinstance(value, Tensor):
        found.append(value)
        parts = [getattr(value, name, None) for name in ("quant_state", "CB", "SCB")]  # bitsandbytes' scales
    elif isinstance(value, dict | list | tuple):
        parts = list(value.values() if isinstance(value, dict) else value)
    elif type(value).__name__ in ("QuantState", "MatmulLtState"):
        parts = list(vars(value).values())
    else:
        return
    seen.add(id(value))
    for part in parts:
        _collect(part, found, seen)


def live_bytes(model: nn.Module) -> int:
    """Return the bytes of the distinct storages that a model holds, quantisation states included."""
    return sum({s._cdata: int(s.nbytes()) for s in (t.untyped_storage() for t in module_tensors(model))}.values())
