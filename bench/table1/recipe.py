"""Configuration that a row of the table trains."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from bench.table1.adalora_memory import adalora_bytes
from qra_bo.config import RunConfig, load_config
from qra_bo.memory.budget import allocation_bytes
from qra_bo.memory.formats import matrix_bytes, parse_format
from qra_bo.memory.model import MemoryModel
from qra_bo.space import Allocation, SearchSpace, average_bits

STARTS = {name: f"bench.table1.decompositions:{name}" for name in ("loftq", "lq_lora")}
"""Initialisations that decompose weights, by their names in recipes, and their functions (``bench.table1.starts``)."""
OWN = "kaiming"
"""LoRA's own initialisation: A at random, B at 0."""
PUBLISHED_FORMATS = {2: ("int2-g64",), 3: ("int3-g64",)}
"""Storage formats, by bits, of rows that have round-to-nearest codes as published, unless others are given; rows that
choose codes have those of a run by default."""
ALTERNATIONS = 5
"""Alternations of LoftQ, and the most of LQ-LoRA."""


def start_of(init: str) -> str | None:
    """Return the codes of a trial (``TrialSpec``) with an initialisation, ``None`` for LoRA's own."""
    return None if init == OWN else init


def codes_name(gptq_tokens: int | None) -> str:
    """Return a suffix for names that depend on the choice of codes; empty for round-to-nearest."""
    return "" if gptq_tokens is None else f"-gptq{gptq_tokens}"


def embeddings_name(bits: int | None) -> str:
    """Return a suffix for names that depend on the embedding; empty for the table's own."""
    return "" if bits is None else f"-embeddings{bits}"


@cache
def _formats_of_a_run() -> Mapping[int, tuple[str, ...]]:
    return load_config().quantizer.formats


def with_codes(config: RunConfig, gptq_tokens: int | None) -> RunConfig:
    """Return ``config`` with a choice of codes as in ``Recipe``, and with its formats, see ``PUBLISHED_FORMATS``."""
    q = config.quantizer
    if gptq_tokens is None:
        return config.with_changes(quantizer=q.with_changes(rounding="rtn"))
    formats = {bits: _formats_of_a_run()[bits] if names == PUBLISHED_FORMATS.get(bits) else names
               for bits, names in q.formats.items()}
    return config.with_changes(quantizer=q.with_changes(rounding="gptq", tokens=gptq_tokens, formats=formats))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Formats, ranks, adapter initialisation and choice of codes.

    Args:
        allocation: Format and rank of every unit; AdaLoRA's ranks are the target, the same everywhere.
        init: Adapter initialisation (``OWN``, or one of ``STARTS``); AdaLoRA has its own.
        initial_rank: AdaLoRA's initial rank; ``None`` for adapters of fixed rank.
        gptq_tokens: Calibration tokens of GPTQ; ``None`` for round-to-nearest codes.
        embeddings: Bits of the embedding and the head; ``None`` for those of the table.
    """

    allocation: Allocation
    init: str
    initial_rank: int | None = None
    gptq_tokens: int | None = None
    embeddings: int | None = None

    @property
    def key(self) -> str:
        """Identity of the training: rows with one key share every trial."""
        how = self.init if self.initial_rank is None else f"adalora{self.initial_rank}"
        return f"{self.allocation.fingerprint}-{how}{codes_name(self.gptq_tokens)}{embeddings_name(self.embeddings)}"

    def to_json(self) -> dict[str, Any]:
        return {**self.allocation.to_json(), "init": self.init, "initial_rank": self.initial_rank,
                "gptq_tokens": self.gptq_tokens, "embeddings": self.embeddings}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        """Inverse of ``to_json``."""
        numbers = [data["initial_rank"], data["gptq_tokens"], data.get("embeddings")]
        return cls(Allocation.from_json(data), str(data["init"]), *(None if n is None else int(n) for n in numbers))

    def predicted_bytes(self, memory: MemoryModel, space: SearchSpace) -> int:
        """Return the bytes in the scope of ``memory``, which has the table's embedding."""
        if self.embeddings is not None:
            memory = replace(memory, shape=replace(memory.shape, embeddings=self.embeddings))
        if self.initial_rank is None:
            return allocation_bytes(memory, space, self.allocation)
        return adalora_bytes(memory, space, self.allocation.formats, self.initial_rank, self.allocation.ranks[0])

    def average_bits(self, space: SearchSpace) -> float:
        """Return the code bits averaged over parameters."""
        return average_bits([parse_format(f).bits for f in self.allocation.formats], space.unit_numel)

    def metadata_bits(self, space: SearchSpace) -> float:
        """Return the bits of scales and zeros per parameter."""
        total = sum(matrix_bytes(parse_format(f), m.out_features, m.in_features)[1]
                    for unit, f in zip(space.units, self.allocation.formats, strict=True) for m in unit.linears)
        return 8 * total / int(space.unit_numel.sum())

    def average_rank(self, space: SearchSpace) -> float:
        """Return the rank averaged over linear layers; of AdaLoRA the target."""
        counts = [len(unit.linears) for unit in space.units]
        return sum(n * r for n, r in zip(counts, self.allocation.ranks, strict=True)) / sum(counts)
