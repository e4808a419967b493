"""Tables of the trellis codes, trained by Lloyd's steps on Gaussian numbers: a state's value becomes the mean of the
numbers that were coded by it.

    python -m bench.trellis_tables [--bits 1 2 3 4] [--steps 60]

Writes ``qra_bo/finetune/quantization/trellis_tables.json``, and the distortion of each table on other numbers.
"""

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import qra_bo
from qra_bo.finetune.quantization.rings import STATE_BITS, UNIT, states_of
from qra_bo.finetune.quantization.viterbi import ring_codes
from qra_bo.memory.formats import LONGEST_RING

FILE = Path(qra_bo.__file__).parent / "finetune" / "quantization" / "trellis_tables.json"
RINGS, LAST_RINGS, LAST = 2048, 8192, 8
"""Rings of a step; of the last steps, which settle the values, more."""


def trained(bits: int, steps: int, seed: int = 0) -> tuple[torch.Tensor, float]:
    """Return a table in units of ``UNIT`` (int16) and its mean squared error of standard normal numbers."""
    draw, states = torch.Generator().manual_seed(seed), 1 << STATE_BITS
    table = torch.randn(states, generator=draw)

    def coded(rings: int) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = torch.randn(rings, LONGEST_RING, generator=draw)
        codes = ring_codes(numbers, torch.ones_like(numbers), table, bits)
        return numbers.view(-1), states_of(codes.t(), bits).t().reshape(-1).long()

    for step in range(steps):
        numbers, at = coded(RINGS if step < steps - LAST else LAST_RINGS)
        sums, counts = (torch.bincount(at, weights, states) for weights in (numbers.double(), None))
        table = torch.where(counts > 0, sums / counts.clamp(min=1), table.double()).float()
        print(f"{bits} bits, step {step + 1}: {float((numbers - table[at]).square().mean()):.5f}", flush=True)
    units = (table / UNIT).round().clamp(-2047, 2047)
    table = units * UNIT
    numbers, at = coded(LAST_RINGS)
    return units.to(torch.int16), float((numbers - table[at]).square().mean())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.trellis_tables", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args(argv)
    found = json.loads(FILE.read_text()) if FILE.exists() else {"tables": {}, "distortion": {}}
    for bits in options.bits:
        table, error = trained(bits, options.steps)
        found["tables"][str(bits)] = base64.b64encode(np.asarray(table).astype("<i2").tobytes()).decode("ascii")
        found["distortion"][str(bits)] = round(error, 5)
        FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
