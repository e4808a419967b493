"""Bytes: of storage formats, of the peak of fine-tuning, and of budgets; and the memory plan.

Importing it loads no torch.
"""

from qra_bo.memory.activations import TrainShape
from qra_bo.memory.model import MemoryModel

__all__ = ["MemoryModel", "TrainShape"]
