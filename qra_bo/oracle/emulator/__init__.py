"""The oracle over a table of real trials (``oracle=benchmark``): table, levels and noise, emulators.

Only reading a table is quick to import: ``emulator`` and ``oracle`` need scikit-learn and torch.
"""

from qra_bo.oracle.emulator.table import Table, TableRow, TaskFacts, load_table

__all__ = ["Table", "TableRow", "TaskFacts", "load_table"]
