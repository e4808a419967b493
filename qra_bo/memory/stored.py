"""Codes of a file that ``codes=stored`` trains on as they are, and their bytes. No torch.

Every unit of such a base has one format, ``stored4`` or the like: each linear keeps the format that it has in the file,
and the number is the rounded average of their code bits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qra_bo.memory.file_formats import BACKEND
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
    return sum(parse_format(m.stored).bits * m.numel for m in spec.linears) / spec.linear_numel


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
    served = "llama.cpp serves the untouched file with the adapter; Ollama from 0.34.1 on takes no adapters" \
        if facts["tables"] else "programs that load the untouched folder take the adapter beside it"
    return (f"codes=stored: {kinds}, {' and '.join(facts['tables']) or '16 bits'} for embedding and head; "
            f"{facts['average_bits']:.2f} code bits on average. {served}")
