"""The search space: decoder shapes, units, formats and ranks, allocations, tables of their memory, and exact solvers.

Importing it loads no torch.
"""

from qra_bo.space.allocation import Allocation, uniform
from qra_bo.space.cost import CostTable, PhaseCost, limit_average_bits, with_allowance
from qra_bo.space.decoder import DecoderSpec, Linear
from qra_bo.space.space import FloatArray, IntArray, SearchSpace, StorageFormat, Unit, average_bits, make_units

__all__ = ["Allocation", "CostTable", "DecoderSpec", "FloatArray", "IntArray", "Linear", "PhaseCost", "SearchSpace",
           "StorageFormat", "Unit", "average_bits", "limit_average_bits", "make_units", "uniform", "with_allowance"]
