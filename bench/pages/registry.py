"""All tables by the name that pages ask for."""

from bench.pages import comparison, exchanged, length, levers, memory, reliability, runs, scale, searches, sensitivity
from bench.pages.blocks import Tables

MODULES = (comparison, searches, sensitivity, runs, exchanged, reliability, scale, memory, length, levers)
TABLES: Tables = {name: make for module in MODULES for name, make in module.TABLES.items()}
