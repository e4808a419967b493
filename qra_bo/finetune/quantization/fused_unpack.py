"""Choice between one kernel and several operators that unpack a matrix on CUDA.

The kernel is Triton's, which comes with PyTorch for CUDA on Linux and compiles at the first use. The first matrix of
every format and type on a device is unpacked by the operators too: where the kernel can't be compiled or gives other
bits, these are used from then on, with a warning.
"""

import importlib
import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from qra_bo.utils.errors import is_out_of_memory

log = logging.getLogger(__name__)
compared: dict[tuple[Any, ...], bool] = {}
"""Whether the kernel gives the bits of the operators, by format, type and device."""


def by_kernel(module: str, device: torch.device, *args: Any) -> Tensor:
    """Return what ``fused_unpack`` of a module beside this one gives; imported now: not every platform has Triton."""
    kernel = importlib.import_module(f"{__package__}.{module}").fused_unpack
    with torch.cuda.device(device):  # Triton launches on the current device, wherever the tensors are
        return cast(Tensor, kernel(*args))


def unpacked(kind: tuple[Any, ...], fused: Callable[[], Tensor], plain: Callable[[], Tensor]) -> Tensor:
    """Return the result of ``fused`` where it works and is known to equal that of ``plain`` for this kind, else that.

    Args:
        kind: What decides whether both are equal: format, type and device.
        fused: Unpacks with the kernel.
        plain: Unpacks with operators.
    """
    if kind in compared:
        return fused() if compared[kind] else plain()
    expected, problem = plain(), "their kernel gives other numbers"
    try:
        compared[kind] = torch.equal(fused(), expected)
    except Exception as error:  # Triton may be absent; the compiler and the driver raise errors of many kinds
        if is_out_of_memory(error):
            raise
        compared[kind], problem = False, str(error).strip().partition("\n")[0] or type(error).__name__
    if not compared[kind]:
        log.warning("weights of %s are unpacked by several operators instead of one kernel: %s. Training is slower, "
                    "with the same results", kind[0], problem)
    return expected
