"""Device and compute type of a run; answers without loading torch where that is possible."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qra_bo.utils.errors import DeviceError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BF16_CAPABILITY = (8, 0)
"""Least compute capability whose tensor cores multiply in bfloat16 (CUDA C++ Programming Guide, "Tensor Cores")."""
FLASH_CAPABILITY = (8, 0)
"""Least compute capability of torch's flash attention, and of cuDNN's."""
CPUINFO = Path("/proc/cpuinfo")
DRIVER = (Path("/proc/driver/nvidia/version"), Path("/usr/lib/wsl/lib/libcuda.so.1"))
"""Files of which one is there with NVIDIA's driver: on Linux, and on WSL 2, where the driver is that of Windows."""
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux mounts control groups, and the file that names those of this process."""
_FAST_BF16 = ({"amx_bf16"}, {"AuthenticAMD", "avx512_bf16"}, {"bf16"})
"""Words of ``/proc/cpuinfo`` that mark CPUs which take bfloat16: Intel's with tiles, AMD's, and ARM's.

A core of an Intel Xeon with avx512_bf16 and no tiles came to 164 GFLOP/s in float32 and 85 in bfloat16 (512 x 576 x
1536). An AMD EPYC trained at 200 in bfloat16 (``CORE_FLOPS``), which no float32 of its width reaches; float32 was not
measured there, and neither type on ARM."""


def resolve_dtype(dtype: str, device_type: str, capability: tuple[int, int] | None = None) -> str:
    """``"auto"`` becomes bfloat16 on CUDA and on CPUs that are faster in it, float16 on a GPU of lower compute
    ``capability``, which emulates bfloat16, and float32 on other CPUs. ``None`` stands for a recent GPU."""
    if dtype != "auto":
        return dtype
    if device_type == "cuda":
        return "bfloat16" if capability is None or capability >= BF16_CAPABILITY else "float16"
    return "bfloat16" if multiplies_bf16() else "float32"


def takes_groups(item: int, device_type: str, capability: tuple[int, int] | None = None) -> bool:
    """Whether attention's fused kernels take fewer heads of keys and values than of queries.

    On CUDA those of flash attention do, which compute in types of ``item`` = 2 bytes on cards of a recent compute
    ``capability`` (``None`` stands for one). The other fused kernel takes none, and with groups torch is left with the
    unfused one, which keeps ``length x length`` scores of every head in fp32.
    """
    return device_type != "cuda" or (item == 2 and (capability is None or capability >= FLASH_CAPABILITY))


def multiplies_bf16() -> bool:
    """Return whether this CPU multiplies faster in bfloat16 than in float32."""
    words: set[str] = set()
    with suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            words |= set(line.split()) if line.lower().startswith(("flags", "features", "vendor_id")) else set()
    return any(wanted <= words for wanted in _FAST_BF16)


def memory_groups() -> Iterator[tuple[int, int]]:
    """Yield limit and free bytes of every control group that limits this process's memory: of a container, of a job of
    a scheduler. The page cache of a group counts as free, because the kernel takes it back first."""
    with suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, kinds, path = line.split(":", 2)  # the first version of control groups names kinds
            if kinds and "memory" not in kinds.split(","):
                continue
            base = GROUPS / "memory" if kinds else GROUPS
            limit, used, of_all = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_") if kinds else \
                ("memory.max", "memory.current", "")
            own = base / path.strip("/")
            for folder in (own, *own.parents)[:len(own.parts) - len(base.parts) + 1]:
                with suppress(OSError, ValueError):  # a group without these files, or without a limit
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    cache = sum(int(stat.get(f"{of_all}{name}", 0)) for name in ("active_file", "inactive_file"))
                    most = int((folder / limit).read_text())
                    if most < _NO_LIMIT:
                        yield most, max(0, most - max(0, int((folder / used).read_text()) - cache))


_NO_LIMIT = 1 << 60
"""Limits from here on are the first version's word for none."""


def planned_device(device: str, card: str | None = None) -> str:
    """Return the kind of device, ``"cuda"`` or ``"cpu"``, that a plan or a simulation stands for: that of a named
    ``card``, else of ``device``. ``"auto"`` is answered from the driver's files, without loading torch."""
    if card is not None:
        return "cuda"
    if device != "auto":
        return device.partition(":")[0]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda" if any(path.exists() for path in DRIVER) and not hidden else "cpu"


def resolve_device(device: str) -> str:
    """``"auto"`` becomes ``"cuda"`` where there is one, else ``"cpu"``. Raises ``DeviceError`` if CUDA is demanded and
    there is none."""
    if device.startswith("cpu"):
        return device
    import torch  # stays unloaded in task=memory, and till its exports in the driver of a CPU run without a search
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"device={device} was demanded and torch {torch.__version__} sees no CUDA device; use "
                          "device=cpu (slower), task=memory (needs no device), or a machine with a GPU")
    return device


def expand_segments() -> None:
    """Have the CUDA caching allocator grow its segments, which wastes the fewest bytes; before torch is imported.

    Settings that the user made are left alone. Torch reads the second name before 2.9, and the first one since. On WSL
    2 such segments fail: the first allocation ends with "CUDA driver error: unknown error" (pytorch#192330).
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if "microsoft" not in platform.release().lower() and not any(name in os.environ for name in names):
        os.environ.update(dict.fromkeys(names, "expandable_segments:True"))


def cores() -> int:
    """Return the cores that this process may use."""
    # Windows and macOS have no affinities.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
