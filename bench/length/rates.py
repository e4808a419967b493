"""The best learning rate by bits, rank and training length: a fine-tune a rate, in bf16.

    python -m bench.length.rates [--out FOLDER] [--hours 2] [--summary]

Uniform allocations of the plays, codes by GPTQ, validation loss at the search's training seed. Every allocation has
three rates at every length: base rate and half of it, then half or twice on the side of the better. They are factors on
the rate of its rank under ``adapter.lr_rule=inverse_sqrt``. Then some allocations are trained on unseen seeds at the
rates of two rules, and evaluated on the test split. The command may be stopped and started again.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import isfinite
from typing import Any

import numpy as np

from bench.length.command import add_folders, run, study_config, study_parser
from bench.length.plan import UNSEEN_SEEDS, Block, Choice, settle, uniform_choice
from bench.length.study import work
from bench.length.trials import Found, PlannedTrial, load
from bench.report import RESULTS, publish
from qra_bo.finetune.training.learning_rate import RATE_RULES
from qra_bo.study.baselines import best_scale
from qra_bo.study.intervals import paired_interval

FILE = RESULTS / "length" / "rates" / "trials.jsonl"
TRIAL = 24
"""Steps of the trials that a search calibrates its rate on."""
LENGTHS: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = (
    (TRIAL, ((4, 1), (4, 4), (4, 16), (3, 2), (3, 15), (8, 4))), (240, ((4, 1), (4, 16))), (240, ((3, 15), (3, 2))),
    (TRIAL, ((2, 8), (2, 2))), (720, ((3, 15),)), (72, ((4, 1), (4, 16))), (720, ((4, 1), (4, 16))))
"""Steps, with bits and rank of the allocations, in the order in which they are trained."""
EARLY = 4
"""How many of ``LENGTHS`` come before the checks; ``by_length`` was fitted to the first two."""
CHECKS: tuple[tuple[int, int, int], ...] = ((240, 4, 1), (240, 3, 2))
"""Steps, bits and rank of what is trained at the rates of both rules on unseen seeds."""
CHECKED_SEEDS = 3
Row = dict[str, Any]


def named(bits: int, rank: int) -> Choice:
    """Return a uniform choice as a class of its own."""
    choice = uniform_choice(bits, rank)
    return replace(choice, kind="curve", rate_class=choice.name)


def blocks() -> tuple[Block, ...]:
    """Return what is tried at several rates."""
    return tuple(Block("plays", "rates", steps, 0, tuple(named(*choice) for choice in choices))
                 for steps, choices in LENGTHS)


def by_length(rank: int, steps: int) -> float:
    """Return the rate of ``adapter.lr_rule=by_length`` as a factor on that of ``inverse_sqrt``."""
    ratio = steps / TRIAL
    return float(f"{RATE_RULES['by_length'].factor(rank, ratio) / RATE_RULES['inverse_sqrt'].factor(rank):.3g}")


def checks(steps: int, bits: int, rank: int) -> Iterator[tuple[PlannedTrial, str]]:
    """Yield the trials of a check: on every unseen seed, one of each rule."""
    choice = named(bits, rank)
    for seed in UNSEEN_SEEDS[:CHECKED_SEEDS]:
        for scale in (1.0, by_length(rank, steps)):
            yield PlannedTrial("plays", choice.allocation, steps, seed, "test", scale), choice.name


def wanted(found: Found) -> tuple[PlannedTrial, str] | None:
    """Return the first trial that is missing, with its title."""
    def missing(some: Sequence[Block]) -> Iterator[tuple[PlannedTrial, str]]:
        return (one for block in some for one in settle(block, found).wanted)

    unchecked = (one for check in CHECKS for one in checks(*check) if one[0].key not in found)
    return next(chain(missing(blocks()[:EARLY]), unchecked, missing(blocks()[EARLY:])), None)


def rate_rows(found: Found) -> list[Row]:
    """Return the best factor of every allocation and length that has three rates."""
    rows = []
    for block, (_, choices) in zip(blocks(), LENGTHS, strict=True):
        of_class = settle(block, found).tried
        for choice, (bits, rank) in zip(block.choices, choices, strict=True):
            tried = [(scale, loss) for scale, loss in sorted(of_class[choice.rate_class].items()) if isfinite(loss)]
            if len(tried) >= 3:
                best, inside = best_scale(tried)
                rows.append({"part": "rates", "steps": block.steps, "bits": bits, "rank": rank,
                             "tried": [list(t) for t in tried], "best": best, "inside": inside,
                             "loss": parabola(tried, best),
                             "by_length": by_length(rank, block.steps)})
    return rows


def parabola(tried: Sequence[tuple[float, float]], factor: float) -> float:
    """Return the loss at ``factor`` on the parabola, in the logarithm of the factor, of the best loss and its
    neighbours."""
    scales, losses = np.log([scale for scale, _ in tried]), [loss for _, loss in tried]
    first = min(max(int(np.argmin(losses)) - 1, 0), len(tried) - 3)
    near = slice(first, first + 3)
    return float(np.polyval(np.polyfit(scales[near], losses[near], 2), np.log(factor)))


def check_rows(found: Found) -> list[Row]:
    """Return the paired differences of the two rules, by allocation, where two seeds have both."""
    rows = []
    for steps, bits, rank in CHECKS:
        losses: Mapping[float, dict[int, float]] = {1.0: {}, by_length(rank, steps): {}}
        for trial, _ in checks(steps, bits, rank):
            if (event := found.get(trial.key)) is not None and event["loss"] is not None:
                losses[trial.lr_scale][trial.train_seed] = event["loss"]
        before, after = losses.values()
        both = [seed for seed in before if seed in after]
        if len(both) > 1:
            d = paired_interval([after[seed] - before[seed] for seed in both])
            old, new = (float(np.mean([of[seed] for seed in both])) for of in (before, after))
            rows.append({"part": "check", "steps": steps, "bits": bits, "rank": rank, "seeds": len(both),
                         "by_length": by_length(rank, steps), "inverse_sqrt_loss": old, "by_length_loss": new,
                         "difference": d.mean, "low": d.low, "high": d.high})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = study_parser("length.rates", __doc__)
    add_folders(parser, FILE.parent)
    options = parser.parse_args(arguments)
    config = study_config("plays", None, ["dtype=bfloat16"])

    def job() -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.summary:
            work(wanted, options.out / FILE.name, {"plays": config}, options.trials, options.hours)
        found = load(options.out / FILE.name)
        publish("length_rates", (), [*rate_rows(found), *check_rows(found)],
                ("part", "steps", "bits", "rank", "best", "by_length", "difference", "low", "high"),
                folder=options.results)

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
