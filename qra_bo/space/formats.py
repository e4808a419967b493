"""Storage formats of quantised weight matrices: names and facts."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StorageFormat:
    """How the weights of one linear layer are stored.

    Args:
        name: Short unique name, e.g. ``"nf4"``, ``"int8"``, ``"hqq3"``, ``"hqq2-g32"``, ``"fp16"``.
        backend: ``"bitsandbytes"``, ``"hqq"``, ``"none"`` or ``"reference"``.
        bits: Code bits per weight: 2, 3, 4, 5, 6, 8 or 16.
        block: Weights that share one scale; 0 where a scale belongs to a whole row or there is none.
        double_quant: Whether the scales are themselves stored in 8 bits (bitsandbytes NF4 only).
    """

    name: str
    backend: str
    bits: int
    block: int
    double_quant: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "backend": self.backend, "bits": self.bits, "block": self.block,
                "double_quant": self.double_quant}
