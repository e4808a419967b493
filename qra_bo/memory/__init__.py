"""Bytes: of storage formats, of a training step's peak, and of budgets. Importing it needs no torch."""

from qra_bo.memory.activations import TrainShape
from qra_bo.memory.model import MemoryModel

__all__ = ["MemoryModel", "TrainShape"]
