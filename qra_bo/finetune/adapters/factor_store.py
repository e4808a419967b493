"""Decomposed quantisation residuals on disk: one decomposition for every (linear, format) of a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_bo.finetune.adapters import lowrank
from qra_bo.finetune.adapters.lowrank import Factors
from qra_bo.finetune.profiling.cache import packing_sources
from qra_bo.finetune.quantization.tensor_store import TensorStore


class FactorStore:
    """Factors by linear and format.

    Args:
        folder: Where the folders of all keys lie.
        facts: JSON values that determine the factors (weights, device, releases); see ``TensorStore``.
        keep: Keys that stay; the oldest go when a new one comes.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], keep: int = 4) -> None:
        self._store = TensorStore(folder, facts, [Path(lowrank.__file__), *packing_sources()], keep)

    @property
    def folder(self) -> Path:
        """Where this key's files lie."""
        return self._store.folder

    def load(self, linear: str, fmt: str, rank: int) -> Factors | None:
        """Factors of at least ``rank``, or ``None``."""
        tensors = self._store.load(f"{linear}.{fmt}")
        if tensors is None or not {"down", "up"} <= tensors.keys() or len(tensors["down"]) < rank:
            return None
        return Factors(tensors["down"], tensors["up"])

    def save(self, linear: str, fmt: str, factors: Factors) -> None:
        self._store.save(f"{linear}.{fmt}", {"down": factors.down, "up": factors.up})
