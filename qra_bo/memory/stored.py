"""Formats of GGUF files, whose codes ``codes=stored`` trains on as they are, and their bytes. No torch.

Every unit of such a base has one format, ``stored4`` or the like: each linear keeps the type that it has in the file,
and the number is the rounded average of their code bits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qra_bo.space.decoder import DecoderSpec, Linear
from qra_bo.space.space import StorageFormat, Unit
from qra_bo.utils.errors import SpaceError

BACKEND, STORED = "gguf", "stored"


class BlockType(NamedTuple):
    """Code bits of a weight; weights and bytes of a block, which is a run of a row (``ggml-common.h`` of llama.cpp)."""

    bits: int
    weights: int
    size: int


TYPES: Mapping[str, BlockType] = {name: BlockType(*numbers) for name, numbers in {
    "Q4_0": (4, 32, 18), "Q4_1": (4, 32, 20), "Q5_0": (5, 32, 22), "Q5_1": (5, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (2, 256, 84), "Q3_K": (3, 256, 110), "Q4_K": (4, 256, 144), "Q5_K": (5, 256, 176), "Q6_K": (6, 256, 210),
    "IQ4_NL": (4, 32, 18), "IQ4_XS": (4, 256, 136), "F16": (16, 1, 2)}.items()}
"""By GGML's name."""
STORED_FORMATS: Mapping[str, StorageFormat] = {f.name: f for f in (
    *(StorageFormat(name, BACKEND, kind.bits, kind.weights) for name, kind in TYPES.items()),
    *(StorageFormat(f"{STORED}{bits}", BACKEND, bits, 0) for bits in range(2, 17)))}
"""The types, and the formats of units, by name. No search may name one."""


def own_format(fmt: StorageFormat, linear: Linear) -> StorageFormat:
    """Return the format of a linear in a unit of format ``fmt``; raises ``SpaceError`` if no file stores it."""
    if fmt.backend != BACKEND or fmt.block:
        return fmt
    if not linear.stored:
        raise SpaceError(f"{fmt.name} stands for the codes of a GGUF file; give codes=stored and a model with one")
    return STORED_FORMATS[linear.stored]


def code_bits(spec: DecoderSpec) -> float:
    """Return the average code bits of the linears of a decoder that has the types of a file."""
    return sum(TYPES[m.stored].bits * m.numel for m in spec.linears) / spec.linear_numel


def stored_facts(spec: DecoderSpec, units: Sequence[Unit]) -> dict[str, Any] | None:
    """Return GGML's types by linear, those of embedding and own head, the average code bits of the linears, and bytes
    by unit; ``None`` where codes are chosen."""
    return None if not spec.tables else {
        "types": {m.name: m.stored for m in spec.linears}, "tables": list(spec.tables),
        "average_bits": code_bits(spec),
        "unit_bytes": [sum(m.numel // TYPES[m.stored].weights * TYPES[m.stored].size for m in unit.linears)
                       for unit in units]}


def stored_note(facts: Mapping[str, Any]) -> str:
    """Return a line on ``stored_facts`` for a plan."""
    kinds = ", ".join(f"{kind} in {n} linears" for kind, n in Counter(facts["types"].values()).most_common())
    return (f"codes=stored: {kinds}, {' and '.join(facts['tables'])} for embedding and head; "
            f"{facts['average_bits']:.2f} code bits on average. llama.cpp serves the untouched file with the adapter; "
            "Ollama from 0.34.1 on takes no adapters")
