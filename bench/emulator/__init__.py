"""An oracle over a table of real trials (``--config-dir bench/conf oracle=emulator``): table, noise, emulators.

Only reading a table is quick to import: ``emulator`` and ``oracle`` need scikit-learn and torch.
"""

from bench.emulator.table import Table, TableRow, TaskFacts, load_table

__all__ = ["Table", "TableRow", "TaskFacts", "load_table"]
