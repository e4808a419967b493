"""What a longer training changes in the loss of allocations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qra_bo.space import Allocation, FloatArray


@dataclass(frozen=True)
class Change:
    """What a longer training changes in the loss of an allocation, but for a constant (nats).

    Args:
        formats: Names of the formats, in the order of ``by_format``.
        by_format: Of every unit in every format, ``L x F``.
        per_doubling: Of a doubling of every unit's rank, ``L``.
    """

    formats: tuple[str, ...]
    by_format: FloatArray
    per_doubling: FloatArray

    def of(self, allocation: Allocation) -> float:
        """Return the change of an allocation with these formats; its ranks need not be on a ladder."""
        columns = [self.formats.index(f) for f in allocation.formats]
        ranks = np.log2(np.array(allocation.ranks, dtype=np.float64))
        return float(self.by_format[np.arange(len(columns)), columns].sum() + self.per_doubling @ ranks)

    def to_json(self) -> dict[str, Any]:
        """Return its fields as JSON."""
        return {"formats": list(self.formats), "by_format": self.by_format.tolist(),
                "per_doubling": self.per_doubling.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Change":
        """Inverse of ``to_json``."""
        return cls(tuple(map(str, data["formats"])), np.array(data["by_format"], dtype=np.float64),
                   np.array(data["per_doubling"], dtype=np.float64))
