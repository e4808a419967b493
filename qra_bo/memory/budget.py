"""Budgets: what a size means, what ``auto`` and ``uniform:BITS,RANK`` come to, and whether anything fits."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qra_bo.memory.formats import LEAST_BITS, default_format
from qra_bo.memory.model import MemoryModel
from qra_bo.space import Allocation, CostTable, IntArray, Ladder, SearchSpace, StorageFormat, uniform
from qra_bo.utils.errors import BudgetError

RULE = ("a size is a positive number with a unit, such as 10GB (10^9 bytes), 10GiB (2^30 bytes) or 512MB, a bare "
        "integer of bytes, auto, or uniform:BITS,RANK such as uniform:4,16")
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(r"([0-9]{1,24}(?:\.[0-9]{1,24})?) ?([a-z]*)")
_UNIFORM = re.compile(r"uniform: ?([0-9]{1,9}) ?, ?([0-9]{1,9})")


def parse_size(text: str | int) -> int:
    """Bytes of ``10GB``, ``10 GiB``, ``512mb`` or a bare integer.

    Raises:
        BudgetError: If it is malformed, zero or negative.
    """
    match = _SIZE.fullmatch(str(text).strip().lower())
    if match is None or match[2] not in _UNITS or isinstance(text, bool):
        raise BudgetError(f"{_shown(text)} is not a size: {RULE}")
    number, unit = str(match[1]), str(match[2])
    if "." in number and not unit:
        raise BudgetError(f"{_shown(text)} is not a size: {RULE}")
    whole, _, fraction = number.partition(".")
    size: int = int(whole + fraction) * _UNITS[unit] // 10 ** len(fraction)  # exact: no floating point
    if size <= 0:
        raise BudgetError(f"{_shown(text)} is less than one byte: {RULE}")
    return size


def _shown(text: str | int) -> str:
    """What was given, as far as a message needs it."""
    plain = str(text)
    return repr(text) if len(plain) <= 60 else f"{plain[:57]!r}..."


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as it was written.

    Args:
        text: As given.
        size: Bytes, or ``None`` where it depends on the device or the model.
        bits: Of ``uniform:BITS,RANK``, else ``None``.
        rank: Of ``uniform:BITS,RANK``, else ``None``.
    """

    text: str
    size: int | None = None
    bits: int | None = None
    rank: int | None = None

    @property
    def auto(self) -> bool:
        """Whether it means what the device has free."""
        return self.size is None and self.bits is None


def parse_budget(text: str | int) -> Budget:
    """A size, ``auto`` or ``uniform:BITS,RANK``.

    Raises:
        BudgetError: If it is none of them, or no backend offers the bits.
    """
    plain = str(text).strip().lower()
    if plain == "auto":
        return Budget(str(text))
    if plain.startswith("uniform"):
        match = _UNIFORM.fullmatch(plain)
        if match is None or int(match[2]) < 1:
            raise BudgetError(f"{_shown(text)} is not a budget: {RULE}")
        default_format(int(match[1]))
        return Budget(str(text), None, int(match[1]), int(match[2]))
    return Budget(str(text), parse_size(text))


def format_size(size: int) -> str:
    """For people: ``"74.3 MB"``, ``"10.00 GB"`` (decimal units)."""
    if abs(size) >= 10**9:
        return f"{size / 10**9:.2f} GB"
    if abs(size) >= 10**6:
        return f"{size / 10**6:.1f} MB"
    return f"{size / 10**3:.1f} kB" if abs(size) >= 10**3 else f"{size} bytes"


def format_for(bits: int, space: SearchSpace) -> StorageFormat:
    """The space's first format of that bit-width, or the default one where the space has none."""
    return next((f for f in space.formats if f.bits == bits), default_format(bits))


def uniform_bytes(memory: MemoryModel, space: SearchSpace, fmt: StorageFormat, rank: int) -> int:
    """Bytes of one format and rank everywhere, on the space's ladders or off them.

    Raises:
        SpaceError: If the rank exceeds a matrix, or the format can't store one.
    """
    single = SearchSpace(space.units, (fmt,), Ladder("ranks", (rank,)))
    row = single.encode(uniform(single.n_units, fmt.name, rank))
    return int(memory.table(single).totals(row[None, :])[0])


def free_bytes(device: str) -> int:
    """Bytes that a device has free now: ``"cpu"`` (available RAM) or ``"cuda"``, ``"cuda:1"`` (loads torch)."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise BudgetError("budget=auto can't tell how much memory is free on this machine; name a size such as 8GB")


def resolve_budget(text: str | int, memory: MemoryModel, space: SearchSpace, *, free: int | None = None,
                   headroom: int = 0) -> int:
    """Bytes that a budget comes to, for this decoder, trainer and scope.

    Args:
        text: The budget as written.
        memory: Prices ``uniform:BITS,RANK``, in its own scope.
        space: Its formats serve the bits of ``uniform:BITS,RANK``; ranks may be off its ladder.
        free: Bytes that the device has free (``free_bytes``); needed for ``auto`` alone.
        headroom: Bytes of them that ``auto`` leaves alone.

    Raises:
        BudgetError: If it is malformed, or ``auto`` leaves nothing.
        SpaceError: If a uniform choice does not suit the decoder.
    """
    budget = parse_budget(text)
    if budget.size is not None:
        return budget.size
    if budget.bits is not None and budget.rank is not None:
        return uniform_bytes(memory, space, format_for(budget.bits, space), budget.rank)
    if free is None:
        raise BudgetError("budget=auto needs to know what the device has free; name a size such as 8GB")
    if free <= headroom:
        raise BudgetError(f"budget=auto: the device has {format_size(free)} free and {format_size(headroom)} are to "
                          "stay free; end other programs on it, lower memory.headroom, or name a size")
    return free - headroom


def smallest(table: CostTable, space: SearchSpace) -> tuple[int, Allocation]:
    """The least memory that any allocation needs, and one that needs no more.

    Exact for tables of ``MemoryModel`` in which all costs grow with rank: of the sums only the resident bytes depend on
    the format, and the spike of the largest unit is what makes the lowest bits not always the smallest: every level of
    it is tried. Where costs fall at some rank (moments of 8 bits, pages) other ranks than the least are tried too, and
    the result is the least of what was tried.
    """
    n, _, n_ranks = table.shape
    unit = np.max([phase.unit for phase in table.phases], axis=0)
    spike = np.max([phase.spike for phase in table.phases], axis=0)
    kept = n_ranks if (np.diff(unit, axis=2) < 0).any() else 1
    unit, spike = unit[:, :, :kept].reshape(n, -1), spike[:, :, :kept].reshape(n, -1)
    rows = []
    for level in np.unique(spike):
        if (spike.min(axis=1) <= level).all():
            option = np.where(spike <= level, unit, np.iinfo(np.int64).max).argmin(axis=1)
            rows.append(np.concatenate([option // kept, option % kept]))
    return _extreme(np.unique(np.stack(rows), axis=0), table, space, -1)


def largest(table: CostTable, space: SearchSpace) -> tuple[int, Allocation]:
    """The most memory that any allocation needs, and one that needs it."""
    n, _, n_ranks = table.shape
    rows = []
    for phase in table.phases:
        unit, spike = phase.unit.reshape(n, -1), phase.spike.reshape(n, -1)
        best = unit.argmax(axis=1)
        gain = unit - unit.max(axis=1, keepdims=True) + spike
        u, option = np.unravel_index(int(gain.argmax()), gain.shape)
        best[u] = option
        rows.append(np.concatenate([best // n_ranks, best % n_ranks]))
    return _extreme(np.stack(rows), table, space, 1)


def _extreme(rows: IntArray, table: CostTable, space: SearchSpace, sign: int) -> tuple[int, Allocation]:
    """Of some rows, the one with the largest (``sign`` 1) or the least (-1) total."""
    totals = table.totals(rows)
    index = int(np.argmax(sign * totals))
    return int(totals[index]), space.decode(rows[index])


def describe(allocation: Allocation, space: SearchSpace) -> str:
    """In words: ``"bits=2, rank=1"``, or ranges where units differ."""
    bits, ranks = space.bits(allocation), allocation.ranks

    def span(values: tuple[int, ...]) -> str:
        return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"

    return f"bits={span(bits)}, rank={span(ranks)}"


def check_budget(budget: int, table: CostTable, space: SearchSpace, memory: MemoryModel) -> None:
    """Refuse a budget that nothing fits.

    Args:
        budget: In bytes.
        table: Of costs, a limit on the average bits included.
        space: Of the search.
        memory: Whose scope and trainer say what else could be lowered.

    Raises:
        BudgetError: With what the smallest allocation needs, and which bits and ranks it has.
    """
    need, allocation = smallest(table, space)
    if budget >= need:
        return
    least = math.ceil(need / 10**5) / 10
    unit = " (a bare number means bytes)" if budget < 10**6 else ""
    raise BudgetError(f"a budget of {format_size(budget)}{unit} is below the smallest allocation, {format_size(need)} "
                      f"({describe(allocation, space)}, {len(allocation)} units); use budget={least:.1f}MB or more"
                      + "".join(f", or {way}" for way in _ways_down(space, memory)))


def _ways_down(space: SearchSpace, memory: MemoryModel) -> list[str]:
    """What would make the smallest allocation smaller."""
    ways = []
    if min(fmt.bits for fmt in space.formats) > LEAST_BITS:
        ways.append("add lower bits")
    if space.ranks.values[0] > 1:
        ways.append("add a lower rank")
    if memory.scope == "peak":
        ways.append("lower train.batch or train.length")
        if not memory.shape.checkpointing:
            ways.append("set train.checkpointing=true")
    return [*ways, "take a smaller model"]
