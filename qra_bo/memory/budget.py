"""Budgets: parsing of sizes, bytes of ``auto`` and of simple choices, and the smallest allocation."""

import math
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from qra_bo.memory.file_formats import BACKEND
from qra_bo.memory.formats import BITS, LEAST_BITS, default_format, parse_format
from qra_bo.memory.model import MemoryModel
from qra_bo.space import Allocation, CostTable, SearchSpace, StorageFormat, uniform
from qra_bo.space.space import mix
from qra_bo.utils.device import memory_groups
from qra_bo.utils.errors import BudgetError, SpaceError
from qra_bo.utils.formatting import cut
from qra_bo.utils.process import interpreter

OF_ALLOCATION = "allocation"
"""Budget of ``task=finetune``: what the given allocation was found within."""
RULE = ("a size is a positive number with a unit, such as 10GB (10^9 bytes), 10GiB (2^30 bytes) or 512MB, or a "
        "bare integer of bytes")
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(r"([0-9]{1,24})(\.[0-9]{1,24})? ?([a-z]*)")
_SIMPLE = re.compile(r"(?:uniform: ?([0-9]{1,9})|mix: ?([0-9]{1,9}(?:\.[0-9]{1,9})?)) ?, ?([0-9]{1,9})")
_ASK = "import torch; print(torch.cuda.mem_get_info(sys.argv[1])[0])"
ASK_SECONDS = 300.0
"""How long a fresh process may take to import torch and to ask a GPU for its free bytes."""
HEADROOM = {"cpu": 512 * 10**6, "cuda": 10**9}
"""Bytes that ``memory.headroom=auto`` leaves free, by the kind of device.

On CUDA they hold what the allocator does not count: the context and the kernels of the libraries took 0.10 to 0.58 GiB
(T4 0.10, L40S 0.41, RTX 4090 0.48, RTX 5090 0.58) by torch's out-of-memory messages in public reports, as what the
process used beyond torch's own bytes; the handles of cuSOLVER, kernels compiled later and a display come on top."""


def headroom_bytes(text: str, device_type: str) -> int:
    """Return the bytes of ``memory.headroom`` on ``"cpu"`` or ``"cuda"``. Raises ``BudgetError`` if it is no size."""
    return HEADROOM[device_type] if text == "auto" else parse_size(text)


def parse_size(text: str | int) -> int:
    """Return the bytes of ``10GB``, ``10 GiB``, ``512mb`` or a bare integer.

    >>> parse_size("10GB"), parse_size("1.5 GiB")
    (10000000000, 1610612736)

    Raises:
        BudgetError: If it is malformed, zero or negative.
    """
    match = _SIZE.fullmatch(str(text).strip().lower())
    if match is None or match[3] not in _UNITS or (match[2] and not match[3]) or isinstance(text, bool):
        raise BudgetError(f"{cut(repr(text))} is not a size: {RULE}")
    size = int(Fraction(match[1] + (match[2] or "")) * _UNITS[match[3]])  # exact: no floating point
    if size <= 0:
        raise BudgetError(f"{cut(repr(text))} is less than one byte: {RULE}")
    return size


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as it was written: one of the classes below. ``resolve_budget`` makes it bytes."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Size(Budget):
    """Bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class Simple(Budget):
    """What a simple choice needs, uniform or fractional: its code bits, averaged over parameters, and its rank."""

    bits: Fraction
    rank: int


class Auto(Budget):
    """The free bytes of the device, less the headroom."""


class OfAllocation(Budget):
    """What the given allocation of ``task=finetune`` was found within."""


def parse_budget(text: "str | int | Budget") -> Budget:
    """Return the budget that a text stands for; a budget as it is. Raises ``BudgetError`` if it is neither a size,
    ``auto``, ``uniform:BITS,RANK``, ``mix:BITS,RANK`` nor ``allocation``, or no backend offers the bits."""
    if isinstance(text, Budget):
        return text
    plain = str(text).strip().lower()
    match = _SIMPLE.fullmatch(plain)
    if match is not None and match[1]:
        default_format(int(match[1]))
    if match is not None and int(match[3]) > 0 and LEAST_BITS <= Fraction(match[1] or match[2]) <= max(BITS):
        return Simple(str(text), Fraction(match[1] or match[2]), int(match[3]))
    if plain in _NAMED:
        return _NAMED[plain](str(text))
    if len(plain) < 4 and plain.isdecimal() and int(plain) > 0:
        raise BudgetError(f"budget={plain} is {plain} bytes; give it a unit, as in {plain}GB")
    try:
        return Size(str(text), parse_size(text))
    except BudgetError as error:
        raise BudgetError(f"{error}; or give auto, uniform:BITS,RANK or mix:BITS,RANK, as in mix:3.8,2") from None


_NAMED = {"auto": Auto, OF_ALLOCATION: OfAllocation}


def format_size(size: int) -> str:
    """Return e.g. ``"74.3 MB"`` or ``"10.00 GB"`` (decimal units)."""
    if abs(size) >= 10**9:
        return f"{size / 10**9:.2f} GB"
    if abs(size) >= 10**6:
        return f"{size / 10**6:.1f} MB"
    return f"{size / 10**3:.1f} kB" if abs(size) >= 10**3 else f"{size} bytes"


def format_for(bits: int, space: SearchSpace) -> StorageFormat:
    """The space's first format of that bit-width, or the default one where the space has none; where units keep the
    codes of a file, that format, whatever the bits."""
    return next((f for f in space.formats if f.bits == bits or f.backend == BACKEND), default_format(bits))


def uniform_bytes(memory: MemoryModel, space: SearchSpace, fmt: StorageFormat, rank: int) -> int:
    """Bytes of one format and rank everywhere, see ``allocation_bytes``."""
    return allocation_bytes(memory, space, uniform(space.n_units, fmt.name, rank))


def allocation_bytes(memory: MemoryModel, space: SearchSpace, allocation: Allocation) -> int:
    """Bytes of an allocation, on the space's ladders or off them. Raises ``SpaceError`` if a rank exceeds a matrix, or
    a format can't store one."""
    priced = space_of(space, allocation)
    return int(memory.table(priced).totals(priced.encode(allocation)[None, :])[0])


def space_of(space: SearchSpace, allocation: Allocation) -> SearchSpace:
    """Return the units with the allocation's formats, and with its ranks beside the space's own.

    A unit that is part of a layer is charged the rank that demands most for the rest of it. With the space's ranks at
    hand an allocation has the bytes that the search's table gives it.
    """
    formats = sorted({parse_format(f) for f in allocation.formats}, key=lambda f: (f.bits, f.name))
    ranks = tuple(sorted({*space.ranks, *allocation.ranks}))
    return SearchSpace(space.units, tuple(formats), ranks)


def simple_choice(choice: Simple, space: SearchSpace, order: Sequence[int] | None = None) -> Allocation:
    """Return the allocation of a simple choice: of whole bits the uniform one (of a ``mix`` if the space has them or no
    others around), else that of the two widths of the space on both sides of its bits, see ``space.space.mix``, with
    units in ``order`` (``None``: by the blind rule). Any rank will do. Raises ``SpaceError`` if a side has no width."""
    below, above = ([f for f in space.formats if side * (f.bits - choice.bits) > 0] for side in (-1, 1))
    between = "mix" in choice.text.lower() and below and above and choice.bits not in {f.bits for f in space.formats}
    if choice.bits in BITS and not between:
        return uniform(space.n_units, format_for(int(choice.bits), space).name, choice.rank)
    if not below or not above:
        raise SpaceError(f"{choice}: {float(choice.bits):g} bits lie between no two of bits="
                         f"{sorted({f.bits for f in space.formats})}; give others, or widen bits")
    return mix(space, format_for(below[-1].bits, space), above[0], choice.bits, choice.rank, order)


def free_bytes(device: str) -> int:
    """Return the free bytes of ``"cpu"`` (available RAM, within limits of containers and schedulers) or ``"cuda"``,
    ``"cuda:1"``. Raises ``BudgetError`` if this machine does not say."""
    if not device.startswith("cuda"):
        with suppress(OSError):
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return min([int(line.split()[1]) * 1024, *(free for _, free in memory_groups())])
        raise BudgetError("budget=auto can't tell how much memory is free on this machine; name a size such as 8GB")
    # The answer takes a CUDA context, whose bytes of the device this process would hold until the run ends.
    said = f"no answer in {ASK_SECONDS:g} s"
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(interpreter(_ASK, device), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              errors="replace", timeout=ASK_SECONDS, check=False)
        if done.returncode == 0:
            return int(done.stdout.split()[-1])
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    raise BudgetError(f"budget=auto can't tell how much memory is free on {device} ({said}); name a size such as 8GB")


def total_bytes(index: int) -> int:
    """Return the bytes of a CUDA device; loads torch, and makes no context on the device."""
    import torch  # stays unloaded where a plan needs no device
    return int(torch.cuda.get_device_properties(index).total_memory)


def resolve_budget(budget: Budget | str, memory: MemoryModel, space: SearchSpace, *, free: int = 0,
                   headroom: int = 0) -> int:
    """Return the bytes of a budget or its text, for this decoder, trainer and scope; ``auto`` is the ``free`` bytes of
    the device less the ``headroom``. The rank of a simple choice may be off the ladder of ``space``.

    Raises:
        BudgetError: If it is malformed, or ``auto`` leaves nothing.
        SpaceError: If a simple choice does not suit the decoder or the space.
    """
    match parse_budget(budget):
        case Size(size=size):
            return size
        case Simple() as choice:
            return allocation_bytes(memory, space, simple_choice(choice, space))
        case OfAllocation():
            raise BudgetError(f"budget={OF_ALLOCATION} is for task=finetune, which has one; name a size such as 8GB")
    if free <= headroom:
        raise BudgetError(f"budget=auto: the device has {format_size(free)} free and {format_size(headroom)} are to "
                          "stay free; end other programs on it, lower memory.headroom, or name a size")
    return free - headroom


def mix_text(allocation: Allocation, space: SearchSpace) -> str:
    """Return ``mix:BITS,RANK`` with the fewest decimals that stands for a fractional choice of the space; a little more
    than whole bits, which name a uniform one."""
    bits = np.array([parse_format(f).bits for f in allocation.formats], dtype=np.int64)
    average = Fraction(int(bits @ space.unit_numel), int(space.unit_numel.sum()))
    stated = ((math.ceil(average * 10**digits) + more) / 10**digits for digits in range(1, 10) for more in (0, 1))
    texts = (f"mix:{value},{allocation.ranks[0]}" for value in stated if value < bits.max())
    return next(text for text in texts if isinstance(choice := parse_budget(text), Simple)
                and simple_choice(choice, space) == allocation)


def smallest(table: CostTable, space: SearchSpace) -> tuple[int, Allocation]:
    """Return the bytes of the smallest allocation, and that allocation.

    Exact for tables of ``MemoryModel`` in which all costs grow with rank: of the sums only the resident bytes depend on
    the format, and the spike of the largest unit is the reason why the lowest bits are not always the smallest: every
    level of it is tried. Where costs fall at some rank (moments of 8 bits) other ranks than the least are tried
    too, and the result is the least of those tried.
    """
    n, _, n_ranks = table.shape
    unit = np.max([phase.unit for phase in table.phases], axis=0)
    spikes = [phase.spike for phase in table.phases]
    kept = n_ranks if (np.diff(unit, axis=2) < 0).any() else 1
    unit = unit[:, :, :kept].reshape(n, -1)
    options = [np.where(spike <= level, unit, np.iinfo(np.int64).max).argmin(axis=1)
               for spike in (s[:, :, :kept].reshape(n, -1) for s in (*spikes, np.max(spikes, axis=0)))
               for level in np.unique(spike) if (spike.min(axis=1) <= level).all()]
    rows = np.unique([np.concatenate([option // kept, option % kept]) for option in options], axis=0)
    totals = table.totals(rows)
    return int(totals.min()), space.decode(rows[totals.argmin()])


def largest(table: CostTable, space: SearchSpace) -> tuple[int, Allocation]:
    """Return the bytes of the largest allocation, and that allocation."""
    n, _, n_ranks = table.shape
    rows = []
    for phase in table.phases:
        unit, spike = phase.unit.reshape(n, -1), phase.spike.reshape(n, -1)
        best = unit.argmax(axis=1)
        gain = unit - unit.max(axis=1, keepdims=True) + spike
        u, option = np.unravel_index(int(gain.argmax()), gain.shape)
        best[u] = option
        rows.append(np.concatenate([best // n_ranks, best % n_ranks]))
    totals = table.totals(np.stack(rows))
    return int(totals.max()), space.decode(rows[totals.argmax()])


def describe(allocation: Allocation, space: SearchSpace) -> str:
    """Return e.g. ``"bits=2, rank=1"``, with ranges where units differ."""
    spans = (" to ".join(map(str, sorted({min(values), max(values)})))
             for values in (space.bits(allocation), allocation.ranks))
    return "bits={}, rank={}".format(*spans)


def check_budget(budget: int, table: CostTable, space: SearchSpace, memory: MemoryModel) -> None:
    """Refuse a budget (bytes) below the smallest allocation; ``memory`` decides about the advice in the message. Raises
    ``BudgetError`` with the smallest allocation, its bytes, and settings that lower them."""
    need, allocation = smallest(table, space)
    if budget >= need:
        return
    least = math.ceil(need / 10**5) / 10
    unit, peak = " (a bare number means bytes)" if budget < 10**5 else "", memory.scope == "peak"
    fewer = "take a base in fewer bits" if memory.spec.linears[0].stored else "add lower bits"
    ways = {fewer: min(fmt.bits for fmt in space.formats) > LEAST_BITS,
            "add a lower rank": space.ranks[0] > 1, "lower train.batch or train.length": peak,
            "set train.checkpointing=true": peak and not memory.shape.checkpointing, "take a smaller model": True}
    sizes = [format_size(budget), format_size(need)]
    if sizes[0] == sizes[1]:
        sizes = [f"{budget:,} bytes", f"{need:,} bytes"]
    raise BudgetError(f"a budget of {sizes[0]}{unit} is below the smallest allocation, {sizes[1]} "
                      f"({describe(allocation, space)}, {len(allocation)} units); use budget={least:.1f}MB or more"
                      + "".join(f", or {way}" for way, helps in ways.items() if helps))
