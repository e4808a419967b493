"""All methods of the table, in its order: importing a module registers what it holds."""

from qra_bo.table1 import rows_given_rank, rows_searched
from qra_bo.table1.rows import ROWS

MODULES = (rows_given_rank, rows_searched)
__all__ = ["MODULES", "ROWS"]
