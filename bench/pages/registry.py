"""All tables by the name that pages ask for."""

from bench.pages import comparison, exports, length, memory, reliability, runs, searches
from bench.pages.blocks import Tables

MODULES = (comparison, searches, length, runs, exports, reliability, memory)
TABLES: Tables = {name: make for module in MODULES for name, make in module.TABLES.items()}
