"""Table of curves: many allocations of the plays after 240 and after 24 steps, for models of the training length.

    python -m bench.length.table [--out FOLDER] [--hours 2] [--summary]

Uniform bits x ranks, committed finds of searches, and mixed ones with small, large and mixed ranks; validation loss in
bf16 at one training seed, codes by GPTQ, learning rates by ``adapter.lr_rule=by_length``. They come in a random order,
so that any beginning of the table is a sample of all. Trainings of 240 steps are evaluated on the way: their curves.
The command may be stopped and started again; with --summary it only writes bench/results/length_table.json and its
figure.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bench.length.command import add_folders, run, study_config, study_parser
from bench.length.curves import LOOKS, SHORT, STEPS
from bench.length.plan import FORMATS, LAYERS, LIMITS, SEARCH_SEED, Choice, committed_finds, uniform_choice
from bench.length.plot import draw_table
from bench.length.study import work
from bench.length.summary import facts, predictors
from bench.length.trials import NAME, Found, PlannedTrial, load
from bench.pages.blocks import DOCS
from bench.report import RESULTS, publish
from qra_bo.config import RunConfig
from qra_bo.report.style import png_bytes
from qra_bo.space import Allocation

FILE = RESULTS / "length" / "table" / NAME
FIGURE = DOCS / "figures" / "length_table.png"
LENGTHS = (STEPS, SHORT)
RANKS = (1, 2, 4, 8, 16, 24)
GRID = (*((bits, rank) for bits in (2, 3, 4, 5) for rank in RANKS), (8, 1), (8, 8), (8, 16))
"""Bits and ranks of the uniform ones."""
MIXES, LADDERS = 18, ((2, 4), (3, 4), (3, 5))
"""How many mixed ones there are, and the bits that each third of them mixes."""


def choices() -> list[Choice]:
    """Return at least 48 different allocations in the order in which they are trained."""
    random = np.random.default_rng(28)
    all_of_them = [uniform_choice(*choice) for choice in GRID]
    all_of_them += [find for limit in LIMITS for find in committed_finds(limit)]
    for i in range(MIXES):
        low, high = LADDERS[i % len(LADDERS)]
        share = random.uniform(0.2, 0.8)
        formats = tuple(FORMATS[high if random.random() < share else low] for _ in range(LAYERS))
        ranks = (1,) if i < MIXES // 3 else (8,) if i < 2 * MIXES // 3 else RANKS
        allocation = Allocation(formats, tuple(int(rank) for rank in random.choice(ranks, LAYERS)))
        all_of_them.append(Choice(f"mixed {i}, {low} and {high} bits", allocation, "curve", ""))
    return [replace(all_of_them[i], kind="curve") for i in random.permutation(len(all_of_them))]


def trial_of(choice: Choice, steps: int) -> PlannedTrial:
    """Return the trial of an allocation."""
    return PlannedTrial("plays", choice.allocation, steps, SEARCH_SEED, "validation", 1.0)


def wanted(found: Found) -> tuple[PlannedTrial, str] | None:
    """Return the first trial that is missing, with its title."""
    trials = ((trial_of(choice, steps), choice.name) for choice in choices() for steps in LENGTHS)
    return next((one for one in trials if one[0].key not in found), None)


def rows_of(found: Found, config: RunConfig) -> list[dict[str, Any]]:
    """Return a row for every allocation that is trained: its curve over the most steps, and what whole runs come to."""
    size, rows = predictors(config), []
    for choice in choices():
        whole, short = (found.get(trial_of(choice, steps).key) for steps in LENGTHS)
        if whole is not None:
            rows.append({"name": choice.name, **facts(choice.allocation, size), **choice.allocation.to_json(),
                         "curve": whole["curve"], "loss": whole["loss"], "short_loss": short and short["loss"]})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = study_parser("length.table", __doc__)
    add_folders(parser, FILE.parent)
    options = parser.parse_args(arguments)
    config = study_config("plays", None, ["dtype=bfloat16", "adapter.lr_rule=by_length"])

    def job() -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.summary:
            work(wanted, options.out / NAME, {"plays": config}, options.trials, options.hours, record_at=LOOKS)
        rows = rows_of(load(options.out / NAME), config)
        publish("length_table", (), rows,
                ("name", "average_bits", "average_rank", "stored_bytes", "loss", "short_loss"), folder=options.results)
        figure = FIGURE if options.results == RESULTS else options.results / FIGURE.name
        figure.write_bytes(png_bytes(draw_table(rows, {"short_loss": SHORT, "loss": STEPS})))

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
