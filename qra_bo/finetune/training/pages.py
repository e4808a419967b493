"""Pages of paged optimisers that the next trial takes over: bitsandbytes allocates such memory and never frees it.

The library keeps every paged tensor in a list of the process and exports no call that frees managed memory, so that a
search would lose the moments of every trial: up to 8 bytes a trainable parameter each. Here pages come in slabs, which
go back to a pool when their optimiser is gone; a process holds those of the largest optimiser alone.
"""

import weakref
from typing import Any

import torch
from torch import Tensor

from qra_bo.memory.optimizers import LEAST_PAGED

SLAB_BYTES = 64 * 2**20
"""Least size of a slab: at most one of them is left half empty by an optimiser."""
_PAGE = 4096
_POOL: list[Tensor] = []
"""Slabs of optimisers that are gone."""


class Pages:
    """Paged memory of one optimiser."""

    def __init__(self) -> None:
        self._slabs: list[Tensor] = []
        self._used = 0
        weakref.finalize(self, _POOL.extend, self._slabs)

    def state_buffer(self, parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return zeros for a moment of ``parameter``: paged ones where bitsandbytes would page them, else tensors of
        its device. It replaces the library's ``get_state_buffer``."""
        if parameter.numel() < LEAST_PAGED:
            return torch.zeros_like(parameter, dtype=dtype)
        from bitsandbytes import functional  # heavy, and needed by paged optimisers alone
        size = dtype.itemsize * parameter.numel()
        if not self._slabs or self._used + size > self._slabs[-1].numel():
            self._slabs.append(_slab(max(size, SLAB_BYTES), parameter.device))
            self._used = 0
        buffer: Any = self._slabs[-1][self._used:self._used + size].view(dtype).view(parameter.shape)
        self._used += -(-size // _PAGE) * _PAGE  # no page belongs to two moments, which are fetched one by one
        buffer.is_paged, buffer.page_deviceid = True, parameter.device.index
        functional.fill(buffer, 0)
        moment: Tensor = buffer
        return moment


def _slab(size: int, device: torch.device) -> Tensor:
    """Return the smallest slab of the pool of at least ``size`` bytes on ``device``, or a new one."""
    from bitsandbytes import functional  # heavy, and needed by paged optimisers alone
    fitting = [s for s in _POOL if s.numel() >= size and s.page_deviceid == device.index]  # type: ignore[attr-defined]
    if not fitting:
        slab: Tensor = functional.get_paged(size, dtype=torch.uint8, device=device)
        return slab
    chosen = min(fitting, key=Tensor.numel)
    _POOL[:] = [s for s in _POOL if s is not chosen]
    return chosen
