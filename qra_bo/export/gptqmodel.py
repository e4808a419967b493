"""``gptqmodel_dynamic.json``: bits by module for GPTQModel's ``QuantizeConfig(dynamic=...)``, as a hint."""

import json
import re
from typing import Any

from qra_bo.export.run import HINT, FinishedRun

OFFERED = (2, 3, 4, 8)
"""Bit-widths of GPTQModel; a module gets the next larger one, and 16 bits are left out of the quantisation."""


def make(run: FinishedRun) -> str:
    """The file's text."""
    dynamic: dict[str, dict[str, Any]] = {}
    for name, bits in run.module_bits.items():
        stored = next((width for width in OFFERED if width >= bits), None)
        key = f"{'-' if stored is None else '+'}:^{re.escape(name)}$"
        dynamic[key] = {} if stored is None else {"bits": stored, "group_size": 64 if stored < 8 else 128}
    return json.dumps({"hint": HINT, "use": "QuantizeConfig(bits=4, group_size=64, dynamic=THIS['dynamic'])",
                       "dynamic": dynamic}, indent=1) + "\n"
