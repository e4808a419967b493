"""All methods of the table, in its order: importing a module registers what it holds."""

from bench.table1 import rows_given_rank, rows_searched
from bench.table1.rows import ROWS

MODULES = (rows_given_rank, rows_searched)
__all__ = ["MODULES", "ROWS"]
