"""The best learning rate by bits, rank and training length: a fine-tune a rate, in bf16.

    python -m bench.length.rates [--out FOLDER] [--hours 2]

Uniform allocations of the plays, codes by GPTQ, validation loss at the search's training seed. Every allocation has
three rates at every length: base rate and half of it, then half or twice on the side of the better. They are factors on
the rate of its rank under ``adapter.lr_rule=inverse_sqrt``. The command may be stopped and started again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.length.command import run, study_config, study_parser
from bench.length.plan import FORMATS, LAYERS, Block, Choice, wanted
from bench.length.study import work
from bench.report import RESULTS
from qra_bo.space import uniform

FILE = RESULTS / "length" / "rates" / "trials.jsonl"
LENGTHS: dict[int, tuple[tuple[int, int], ...]] = {
    24: ((4, 1), (4, 4), (4, 16), (3, 2), (3, 15), (8, 4)), 240: ((4, 1), (4, 16), (3, 15), (3, 2)),
    72: ((4, 1), (4, 16), (3, 15), (3, 2)), 720: ((4, 1), (4, 16))}
"""Bits and rank of the allocations by steps, in the order in which they are trained."""


def plan() -> tuple[Block, ...]:
    """Blocks of trials in their order; every allocation is a class of its own."""
    return tuple(Block("plays", "rates", steps, 0, tuple(
        Choice(name := f"uniform {bits} bits, rank {rank}", uniform(LAYERS, FORMATS[bits], rank), "curve", name)
        for bits, rank in choices)) for steps, choices in LENGTHS.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = study_parser("length.rates", __doc__)
    parser.add_argument("--out", type=Path, default=FILE.parent, help="folder of the trials")
    options = parser.parse_args(arguments)
    config = study_config("plays", None, ["dtype=bfloat16"])

    def job() -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        work(lambda found: wanted(plan(), found, ("plays",)), options.out / FILE.name, {"plays": config},
             options.trials, options.hours)

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
