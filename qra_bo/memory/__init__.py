"""Bytes: of storage formats, of the peak of fine-tuning, and of budgets; and the memory plan.

Importing it loads no torch.
"""

from qra_bo.memory.activations import TrainShape
from qra_bo.memory.budget import check_budget, format_size, parse_budget, parse_size, resolve_budget
from qra_bo.memory.formats import FORMATS, default_format, parse_format
from qra_bo.memory.model import MemoryModel
from qra_bo.memory.plan import Plan, memory_plan

__all__ = ["FORMATS", "MemoryModel", "Plan", "TrainShape", "check_budget", "default_format", "format_size",
           "memory_plan", "parse_budget", "parse_format", "parse_size", "resolve_budget"]
