"""What it costs to search only formats that one program serves: one line of the memory plan. No torch."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from qra_bo.memory.budget import format_size, smallest, uniform_bytes
from qra_bo.memory.formats import default_format
from qra_bo.memory.model import MemoryModel
from qra_bo.memory.serving import ANY, CONSUMERS
from qra_bo.memory.verdict import largest_rank
from qra_bo.space import SearchSpace
from qra_bo.utils.errors import UserError


def serving_notes(memory: MemoryModel, space: SearchSpace, budgets: Mapping[str, int]) -> list[str]:
    """Return one line that compares the space with that of the same bits and ``serve=any``; nothing for ``any`` itself.

    Args:
        memory: Decoder, trainer, scope and the consumer.
        space: Units and ladders, of formats that the consumer loads.
        budgets: Bytes by text.
    """
    if memory.serve == ANY:
        return []
    names = " ".join(fmt.name for fmt in space.formats)
    line = f"serve={memory.serve}: {names}, which {CONSUMERS[memory.serve].title} loads exactly."
    with suppress(UserError):  # default formats that can't store these matrices are nothing to compare with
        free, other = replace(memory, serve=ANY), _default_space(space)
        pairs = [(f"the smallest allocation needs {format_size(smallest(memory.table(space), space)[0])}",
                  format_size(smallest(free.table(other), other)[0]))]
        pairs += [(f"within {format_size(size)} the best uniform choice is {_best(memory, space, size)}",
                   _best(free, other, size)) for size in budgets.values()]
        said = "; ".join(f"{ours} ({theirs} with serve=any)" for ours, theirs in pairs)
        line += f" {said[0].upper()}{said[1:]}."
    return [line + _dominated(memory, space)]


def _default_space(space: SearchSpace) -> SearchSpace:
    return replace(space, formats=tuple(default_format(bits) for bits in sorted({f.bits for f in space.formats})))


def _best(memory: MemoryModel, space: SearchSpace, size: int) -> str:
    """Name the uniform choice of the most bits that fits, at its largest rank."""
    ranks = ((fmt, largest_rank(memory, space, fmt, size)) for fmt in reversed(space.formats))
    return next((f"{fmt.name}, rank {rank}" for fmt, rank in ranks if rank), "none")


def _dominated(memory: MemoryModel, space: SearchSpace) -> str:
    """Name bit-widths of no use: a wider format takes no more bytes."""
    low = space.ranks.values[0]
    sizes = [(fmt.bits, uniform_bytes(memory, space, fmt, low)) for fmt in space.formats]
    useless = sorted({bits for bits, size in sizes if any(b > bits and s <= size for b, s in sizes)})
    kept = sorted({bits for bits, _ in sizes} - set(useless))
    return f" There {' and '.join(map(str, useless))} bits take as many bytes as wider ones: use bits=[" \
           f"{','.join(map(str, kept))}]." if useless else ""
