"""Bytes of AdaLoRA's training, and the largest ranks with which it fits."""

from collections.abc import Sequence

from qra_bo.memory.budget import format_size
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel
from qra_bo.space import Allocation, SearchSpace
from qra_bo.utils.errors import BudgetError

START_OVER_TARGET = 1.5
"""Initial rank over target rank, as published."""


def adalora_bytes(memory: MemoryModel, space: SearchSpace, formats: Sequence[str], initial: int, target: int) -> int:
    """Bytes of a training that begins with rank ``initial`` everywhere and ends with ``target`` on average.

    The peak is that of LoRA with the initial rank, two fp32 tensors of importance for every adapter weight, the vectors
    E, and what one linear's importance and regularisation need in passing. Stored bytes are those of the worst outcome:
    the triplets that stay sit in the largest linears.

    Args:
        memory: Prices the allocation.
        space: Its units.
        formats: Format name of every unit.
        initial: Triplets of every linear at the start.
        target: Triplets that stay on average.
    """
    sizes = {f: parse_format(f) for f in formats}
    ladder = tuple(sorted(sizes.values(), key=lambda f: (f.bits, f.name)))
    sides = sorted((m.in_features + m.out_features for u in space.units for m in u.linears), reverse=True)

    def priced(rank: int) -> int:
        single = SearchSpace(space.units, ladder, (rank,))
        row = single.encode(Allocation(tuple(formats), (rank,) * len(formats)))
        return int(memory.table(single).totals(row[None, :])[0])

    if memory.scope == "stored":
        whole, rest = divmod(target * len(sides), initial)
        most = initial * sum(sides[:whole]) + (rest * sides[whole] if rest else 0)
        return priced(initial) - 2 * initial * sum(sides) + 2 * most
    passing = max(max(m.in_features, m.out_features) for u in space.units for m in u.linears) * initial * 4 * 2
    vectors = len(sides) * (initial * (memory.shape.compute_dtype_bytes + memory.master_item + 21) + 4)
    return priced(initial) + 8 * initial * sum(sides) + vectors + passing


def fit_adalora(memory: MemoryModel, space: SearchSpace, formats: Sequence[str], budget_bytes: int,
                most: int) -> tuple[int, int]:
    """The largest (initial, target) ranks that fit, the target at most ``most``.

    Raises:
        BudgetError: If a target of rank 1 does not fit.
    """
    largest = min(min(m.in_features, m.out_features) for u in space.units for m in u.linears)
    for target in range(min(most, largest), 0, -1):
        initial = min(largest, round(START_OVER_TARGET * target))
        if adalora_bytes(memory, space, formats, initial, target) <= budget_bytes:
            return initial, target
    need = adalora_bytes(memory, space, formats, round(START_OVER_TARGET), 1)
    raise BudgetError(f"AdaLoRA with a target of rank 1 needs {format_size(need)} on this base; the budget is "
                      f"{format_size(budget_bytes)}: raise it, or choose lower bits")
