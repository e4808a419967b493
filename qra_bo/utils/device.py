"""Device and compute type of a run; answers without loading torch where that is possible."""

import os
from contextlib import suppress
from pathlib import Path

from qra_bo.utils.errors import DeviceError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BF16_CAPABILITY = (8, 0)
"""Least compute capability whose tensor cores multiply in bfloat16 (CUDA C++ Programming Guide, "Tensor Cores")."""
_FAST_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's


def resolve_dtype(dtype: str, device_type: str, capability: tuple[int, int] | None = None) -> str:
    """``"auto"`` becomes bfloat16 on CUDA and on CPUs that multiply in it; elsewhere bf16 is emulated and slower, and a
    GPU of lower compute ``capability`` takes float16, a CPU float32. ``None`` stands for a recent GPU."""
    if dtype != "auto":
        return dtype
    if device_type == "cuda":
        return "bfloat16" if capability is None or capability >= BF16_CAPABILITY else "float16"
    flags: set[str] = set()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            flags |= set(line.split()) if line.lower().startswith(("flags", "features")) else set()
    return "bfloat16" if flags & _FAST_BF16 else "float32"


def planned_device(device: str, card: str | None = None) -> str:
    """Return the kind of device, ``"cuda"`` or ``"cpu"``, that a plan or a simulation stands for: that of a named
    ``card``, else of ``device``. ``"auto"`` is answered from the driver's files, without loading torch."""
    if card is not None:
        return "cuda"
    if device != "auto":
        return device.partition(":")[0]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda" if Path("/proc/driver/nvidia/version").exists() and not hidden else "cpu"


def resolve_device(device: str) -> str:
    """``"auto"`` becomes ``"cuda"`` where there is one, else ``"cpu"``. Loads torch. Raises ``DeviceError`` if CUDA is
    demanded and there is none."""
    import torch  # stays unloaded in task=memory
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"device={device} was demanded and torch {torch.__version__} sees no CUDA device; use "
                          "device=cpu (slower), task=memory (needs no device), or a machine with a GPU")
    return device


def expand_segments() -> None:
    """Have the CUDA caching allocator grow its segments, which wastes the fewest bytes; before torch is imported.

    Settings that the user made are left alone. Torch reads the second name before 2.9, and the first one since.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if not any(name in os.environ for name in names):
        os.environ.update(dict.fromkeys(names, "expandable_segments:True"))


def cores() -> int:
    """Return the cores that this process may use."""
    # Windows and macOS have no affinities.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
