"""What it costs to search only formats that one program serves, and the sizes of its files. No torch."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from qra_bo.memory.budget import format_size, smallest, uniform_bytes
from qra_bo.memory.embeddings import n_tables, table_numel
from qra_bo.memory.formats import default_format
from qra_bo.memory.model import MemoryModel
from qra_bo.memory.serving import ANY, CONSUMERS, served_bytes
from qra_bo.memory.verdict import best_uniform
from qra_bo.space import Allocation, SearchSpace
from qra_bo.utils.errors import UserError


def serving_notes(memory: MemoryModel, space: SearchSpace, budgets: Mapping[str, int],
                  most_bits: float | None = None) -> list[str]:
    """Return one line that compares the space with that of the same bits and ``serve=any``; nothing for ``any`` itself.

    Args:
        memory: Decoder, trainer, scope and the consumer.
        space: Units and ladders, of formats that the consumer loads.
        budgets: Bytes by text.
        most_bits: Limit on average code bits; ``None``: none.
    """
    if memory.serve == ANY:
        return []
    names = " ".join(fmt.name for fmt in space.formats)
    line = f"serve={memory.serve}: {names}, which {CONSUMERS[memory.serve].title} loads exactly."
    with suppress(UserError):  # default formats that can't store these matrices are nothing to compare with
        free, other = replace(memory, serve=ANY), _default_space(space)
        pairs = [(f"the smallest allocation needs {format_size(smallest(memory.table(space), space)[0])}",
                  format_size(smallest(free.table(other), other)[0]))]
        pairs += [(f"within {format_size(size)} the best uniform choice is {_best(memory, space, size, most_bits)}",
                   _best(free, other, size, most_bits)) for size in budgets.values()]
        said = "; ".join(f"{ours} ({theirs} with serve=any)" for ours, theirs in pairs)
        line += f" {said[0].upper()}{said[1:]}."
    return [line + _dominated(memory, space)]


def gguf_bytes(memory: MemoryModel, space: SearchSpace, allocation: Allocation) -> dict[str, int]:
    """Return the bytes of all tensors in the files of the export ``gguf``, by the name of the file; empty where the
    result is not for llama.cpp.

    Headers come on top: the vocabulary, and an entry a tensor. Norms and biases have 32 bits there, adapters too; an
    embedding in 8 or 6 bits is stored as Q8_0, and merged files hold every linear as F16 or Q8_0.
    """
    if memory.serve != "llamacpp":
        return {}
    spec, formats, tables = memory.spec, {fmt.name: fmt for fmt in space.formats}, n_tables(memory.spec)
    others = 4 * (spec.other_numel - tables * table_numel(spec))
    others += tables * (2 * table_numel(spec) if memory.shape.embeddings == 16 else _q8_0(table_numel(spec)))
    base = half = byte = others
    adapter = 0
    for unit, name, rank in zip(space.units, allocation.formats, allocation.ranks, strict=True):
        for m in unit.linears:
            base += sum(served_bytes(memory.serve, formats[name], m.out_features, m.in_features))
            adapter += 4 * rank * (m.in_features + m.out_features)
            half += 2 * m.numel
            byte += 2 * m.numel if m.in_features % 32 else _q8_0(m.numel)
    return {"base": base, "adapter": adapter, "merged-f16": half, "merged-q8_0": byte}


def _q8_0(numel: int) -> int:
    """Return the bytes of whole blocks of 32 codes of 8 bits with a scale of 16."""
    return numel * 34 // 32


def _default_space(space: SearchSpace) -> SearchSpace:
    return replace(space, formats=tuple(default_format(bits) for bits in sorted({f.bits for f in space.formats})))


def _best(memory: MemoryModel, space: SearchSpace, size: int, most_bits: float | None) -> str:
    """Name the uniform choice of the most bits that fits, at its largest rank."""
    chosen = best_uniform(memory, space, size, most_bits)
    return "none" if chosen is None else f"{chosen[0].name}, rank {chosen[1]}"


def _dominated(memory: MemoryModel, space: SearchSpace) -> str:
    """Name bit-widths of no use: a wider format takes no more bytes."""
    low = space.ranks.values[0]
    sizes = [(fmt.bits, uniform_bytes(memory, space, fmt, low)) for fmt in space.formats]
    useless = sorted({bits for bits, size in sizes if any(b > bits and s <= size for b, s in sizes)})
    kept = sorted({bits for bits, _ in sizes} - set(useless))
    return f" There {' and '.join(map(str, useless))} bits take as many bytes as wider ones: use bits=[" \
           f"{','.join(map(str, kept))}]." if useless else ""
