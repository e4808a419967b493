"""Tables of the trellis codes, trained by Lloyd's steps on Gaussian numbers: a state's value becomes the mean of the
numbers that were coded by it.

    python -m bench.trellis_tables

Writes ``qra_bo/finetune/quantization/trellis_tables.json``, and the distortion of each table on other numbers.
"""

import base64
import json
from pathlib import Path

import numpy as np
import torch

import qra_bo
from qra_bo.finetune.quantization.rings import STATE_BITS, UNIT
from qra_bo.finetune.quantization.viterbi import ring_states
from qra_bo.memory.formats import LONGEST_RING

FILE = Path(qra_bo.__file__).parent / "finetune" / "quantization" / "trellis_tables.json"
BITS, STEPS = (1, 2, 3, 4), 60
RINGS, LAST_RINGS, LAST = 2048, 8192, 8
"""Rings of a step; of the last steps, which settle the values, more."""


def trained(bits: int) -> tuple[torch.Tensor, float]:
    """Return a table in units of ``UNIT`` (int16) and its mean squared error of standard normal numbers."""
    draw, states = torch.Generator().manual_seed(0), 1 << STATE_BITS
    table = torch.randn(states, generator=draw)

    def coded(rings: int) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = torch.randn(rings, LONGEST_RING, generator=draw)
        return numbers.view(-1), ring_states(numbers, torch.ones_like(numbers), table, bits).view(-1)

    for step in range(STEPS):
        numbers, at = coded(RINGS if step < STEPS - LAST else LAST_RINGS)
        sums, counts = (torch.bincount(at, weights, states) for weights in (numbers.double(), None))
        table = torch.where(counts > 0, sums / counts.clamp(min=1), table.double()).float()
        print(f"{bits} bits, step {step + 1}: {float((numbers - table[at]).square().mean()):.5f}", flush=True)
    units = (table / UNIT).round().clamp(-2047, 2047)
    table = units * UNIT
    numbers, at = coded(LAST_RINGS)
    return units.to(torch.int16), float((numbers - table[at]).square().mean())


def main() -> None:
    tables, distortion = {}, {}
    for bits in BITS:
        table, error = trained(bits)
        tables[str(bits)] = base64.b64encode(np.asarray(table).astype("<i2").tobytes()).decode("ascii")
        distortion[str(bits)] = round(error, 5)
    FILE.write_text(json.dumps({"tables": tables, "distortion": distortion}, indent=1) + "\n")


if __name__ == "__main__":
    main()
