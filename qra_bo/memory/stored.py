"""Codes of a file that ``codes=stored`` trains on as they are, and their bytes. No torch.

Linears of a unit in ``stored4`` or the like keep the formats of the base's file or folder, in ``other3`` those of
another of the model. The number is the rounded average of code bits, and falls by one at least from file to file.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from qra_bo.memory.file_formats import BACKEND, EXL3, OTHER, STORED, TYPES
from qra_bo.memory.formats import matrix_bytes, parse_format
from qra_bo.space.decoder import DecoderSpec, Linear
from qra_bo.space.space import StorageFormat, Unit
from qra_bo.utils.errors import SpaceError


def own_format(fmt: StorageFormat, linear: Linear) -> StorageFormat:
    """Return the format of a linear in a unit of format ``fmt``; raises ``SpaceError`` if no file stores it."""
    if fmt.backend not in (BACKEND, OTHER) or fmt.block:
        return fmt
    if fmt.name not in (own := dict(linear.stored)):
        raise SpaceError(f"{fmt.name} stands for the codes of a file; give codes=stored and a model with one")
    return parse_format(own[fmt.name])


def with_stored(spec: DecoderSpec, *files: Sequence[str]) -> DecoderSpec:
    """Return a decoder whose linears have these formats in files, the base's first; formats of units differ in their
    number. Raises ``SpaceError`` unless code bits fall from file to file."""
    averages = [8 * sum(matrix_bytes(parse_format(kind), m.out_features, m.in_features)[0]
                        for m, kind in zip(spec.linears, kinds, strict=True)) / spec.linear_numel for kinds in files]
    if any(more <= less for more, less in pairwise(averages)):
        raise SpaceError("files of one model must be given from the most code bits to the fewest; these have "
                         f"{', '.join(f'{bits:.2f}' for bits in averages)} on average")
    names, bits = list[str](), 0
    for place, average in reversed([*enumerate(averages)]):
        bits = max(round(average), bits + 1)
        names.append(f"{OTHER if place else STORED}{bits}")
    return replace(spec, linears=tuple(
        replace(m, stored=tuple(zip(names, kinds[::-1], strict=True)))
        for m, kinds in zip(spec.linears, zip(*files, strict=True), strict=True)))


def codebook_bytes(spec: DecoderSpec, formats: Sequence[StorageFormat]) -> int:
    """Return the bytes of the tables that layers of one type of GGUF share, and those of one codebook of EXL3 (values
    of all states in fp32), of a file and of a search's formats."""
    of_files = (own for m in spec.linears for _, own in m.stored)
    named = {*spec.tables, *of_files, *(f.name for f in formats)}
    return (4 << 16) * len({EXL3[name].codebook for name in named & EXL3.keys()}) + sum(
        TYPES[name].table for name in named & TYPES.keys())


def stored_facts(spec: DecoderSpec, units: Sequence[Unit]) -> dict[str, Any] | None:
    """Return the types of embedding and own head where they are packed, and by file, named as units in it, the formats
    by linear, and bytes of codes alone and of all by unit; ``None`` where codes are chosen."""
    files = {}
    for name, _ in spec.linears[0].stored:
        own = {m.name: own_format(parse_format(name), m) for m in spec.linears}
        sizes = [[matrix_bytes(own[m.name], m.out_features, m.in_features) for m in unit.linears] for unit in units]
        files[name] = {"types": {module: fmt.name for module, fmt in own.items()},
                       "unit_codes": [sum(codes for codes, _ in part) for part in sizes],
                       "unit_bytes": [sum(map(sum, part)) for part in sizes]}
    return {"tables": list(spec.tables), "files": files} if files else None


def stored_note(spec: DecoderSpec) -> str:
    """Return one line on a stored base and what loads it."""
    files, tables = zip(*(m.stored for m in spec.linears), strict=True), spec.tables
    listed = [", ".join(f"{kind} in {n} linears" for kind, n in Counter(kind for _, kind in file).most_common())
              + f" ({file[0][0]})" for file in files]
    if not tables or tables[0] not in TYPES:
        folder, tables = "exl3/ with its chosen codes" if listed[1:] else "the untouched folder", ("16 bits", *tables)
        served = f"Programs that load {folder} take the adapter beside it"
    else:
        base = "base.gguf, which holds the chosen codes of both files," if listed[1:] else "the untouched file"
        served = f"llama.cpp serves {base} with the adapter; Ollama from 0.34.1 on takes no adapters"
    return f"codes=stored: {' or '.join(listed)}, {' and '.join(tables)} for embedding and head. {served}"
