"""``torchao_fqn.json``: weight-only configuration by module for torchao's ``FqnToConfig``, as a hint."""

import json

from qra_bo.export.run import HINT, FinishedRun

OFFERED = {4: "Int4WeightOnlyConfig", 8: "Int8WeightOnlyConfig", 16: None}
"""Configuration by bit-width; a module gets the next larger one: 4 bits for 2 and 3, 8 for 5 and 6."""


def make(run: FinishedRun) -> str:
    """The file's text."""
    raised = {bits: next(width for width in OFFERED if width >= bits) for bits in sorted(set(run.module_bits.values()))}
    return json.dumps({
        "hint": HINT, "bits_raised": {str(bits): width for bits, width in raised.items() if bits != width},
        "use": "FqnToConfig({name: None if c is None else getattr(torchao.quantization, c)() for name, c in "
               "THIS['modules'].items()})",
        "modules": {name: OFFERED[raised[bits]] for name, bits in run.module_bits.items()}}, indent=1) + "\n"
