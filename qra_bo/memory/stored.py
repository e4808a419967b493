"""Codes of a file that ``codes=stored`` trains on as they are, and their bytes. No torch.

Every unit of such a base has one format, ``stored4`` or the like: each linear keeps the format that it has in the file,
and the number is the rounded average of their code bits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qra_bo.memory.file_formats import BACKEND, EXL3, TYPES
from qra_bo.memory.formats import matrix_bytes, parse_format
from qra_bo.space.decoder import DecoderSpec, Linear
from qra_bo.space.space import StorageFormat, Unit
from qra_bo.utils.errors import SpaceError


def own_format(fmt: StorageFormat, linear: Linear) -> StorageFormat:
    """Return the format of a linear in a unit of format ``fmt``; raises ``SpaceError`` if no file stores it."""
    if fmt.backend != BACKEND or fmt.block:
        return fmt
    if not linear.stored:
        raise SpaceError(f"{fmt.name} stands for the codes of a file; give codes=stored and a model with one")
    return parse_format(linear.stored)


def code_bits(spec: DecoderSpec) -> float:
    """Return the average code bits of the linears of a decoder that has the formats of a file."""
    sizes = (matrix_bytes(parse_format(m.stored), m.out_features, m.in_features)[0] for m in spec.linears)
    return 8 * sum(sizes) / spec.linear_numel


def codebook_bytes(spec: DecoderSpec, formats: Sequence[StorageFormat]) -> int:
    """Return the bytes of the values of all states in fp32, which EXL3's layers of one codebook share, of a file and
    of a search's formats."""
    named = {*spec.tables, *(m.stored for m in spec.linears), *(f.name for f in formats)} & EXL3.keys()
    return (4 << 16) * len({EXL3[name].codebook for name in named})


def stored_facts(spec: DecoderSpec, units: Sequence[Unit]) -> dict[str, Any] | None:
    """Return the formats by linear, the types of embedding and own head where they are packed, the average code bits of
    the linears, and bytes by unit; ``None`` where codes are chosen."""
    return None if not spec.linears[0].stored else {
        "types": {m.name: m.stored for m in spec.linears}, "tables": list(spec.tables),
        "average_bits": code_bits(spec),
        "unit_bytes": [sum(sum(matrix_bytes(parse_format(m.stored), m.out_features, m.in_features))
                           for m in unit.linears) for unit in units]}


def stored_note(facts: Mapping[str, Any]) -> str:
    """Return a line on ``stored_facts`` for a plan."""
    kinds = ", ".join(f"{kind} in {n} linears" for kind, n in Counter(facts["types"].values()).most_common())
    of_file = bool(facts["tables"]) and facts["tables"][0] in TYPES
    served = "llama.cpp serves the untouched file with the adapter; Ollama from 0.34.1 on takes no adapters" \
        if of_file else "programs that load the untouched folder take the adapter beside it"
    tables = facts["tables"] if of_file else ["16 bits", *facts["tables"]]
    return (f"codes=stored: {kinds}, {' and '.join(tables)} for embedding and head; "
            f"{facts['average_bits']:.2f} code bits on average. {served}")
