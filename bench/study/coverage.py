"""Coverage of the intervals over training seeds and held-out text, by simulation from recorded losses.

    python -m bench.study.coverage

The recorded seeds and sequences of pairs of choices (``plans/coverage.yaml``) stand for all of them: the truth is the
mean difference over every one. Each repeat draws a few seeds and sequences with replacement, as a study draws them from
all that there are, and asks whether the interval of what was drawn holds the truth. Draws of different seeds are
simulated too: a quarter of all seeds varies a little less than as many new ones.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import RESULTS, Target, publish
from bench.study.plan import load_study
from bench.study.run import finder, stores_in
from bench.study.schedule import settle
from qra_bo.study.intervals import Interval, paired_interval, two_way_interval
from qra_bo.trials import SequenceLosses

PLAN = Path(__file__).parent / "plans" / "coverage.yaml"
TRIALS = RESULTS / "coverage"
SEEDS, SEQUENCES, REPEATS = 5, 64, 4000
COLUMNS = ("choice", "of_seeds", "seeds", "sequences", "drawn",
           "coverage", "over_seeds_alone", "half_width", "half_width_over_seeds_alone")


def simulate(candidate: Sequence[SequenceLosses], reference: Sequence[SequenceLosses], sequences: int,
             replace: bool, repeats: int = REPEATS, seeds: int = SEEDS) -> dict[str, Any]:
    """Return how often 95 % intervals hold the mean difference over all recorded seeds and sequences, and their mean
    half-widths (nats): of ``two_way_interval``, and of ``paired_interval``, which is over seeds alone.

    Args:
        candidate: For each recorded seed, the losses of every sequence, each taken for a document of its own.
        reference: The same of the other choice.
        sequences: Drawn at a time, with replacement.
        replace: Whether seeds are drawn with replacement.
        repeats: Number of draws.
        seeds: Drawn at a time.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (candidate, reference)]
    sides = [side[..., :2] for side in sides]
    tokens = sides[0][0, :, 1]
    summed = sides[0][..., 0] - sides[1][..., 0]
    truth, draw = summed.sum() / (len(summed) * tokens.sum()), np.random.default_rng(0)
    wide, narrow = list[Interval](), list[Interval]()
    for _ in range(repeats):
        rows = draw.choice(len(summed), seeds, replace=replace)
        columns = draw.choice(len(tokens), sequences)
        wide.append(two_way_interval(*(side[np.ix_(rows, columns)].tolist() for side in sides)))
        narrow.append(paired_interval(summed[np.ix_(rows, columns)].sum(axis=1) / tokens[columns].sum()))
    held, width = ([float(np.mean([f(i) for i in found])) for found in (wide, narrow)] for f in (
        lambda i: i.low <= truth <= i.high, lambda i: (i.high - i.low) / 2))
    return {"seeds": seeds, "sequences": sequences, "drawn": "with replacement" if replace else "different seeds",
            "coverage": held[0], "over_seeds_alone": held[1], "half_width": width[0],
            "half_width_over_seeds_alone": width[1], "mean": float(truth), "repeats": repeats}


def recorded(repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Return the rows of the committed trials: of each choice less the first one, over all seeds that both have."""
    [arms], find = load_study(PLAN).comparisons, finder(stores_in(TRIALS))
    first, *others = (settle(arm, find) for arm in arms)
    rows = []
    for other in others:
        kept = sorted(first.losses.keys() & other.losses.keys())
        sides = [[side.tested[seed].sequence_losses for seed in kept] for side in (other, first)]
        rows += [{"choice": other.arm.name, "of_seeds": len(kept), **simulate(*sides, SEQUENCES, replace, repeats)}
                 for replace in (True, False)]
    return rows


def main() -> None:
    """Write ``coverage.json``."""
    rows = recorded()
    targets = [Target(f"coverage of 95 % intervals: {row['choice']}, of {row['of_seeds']} seeds, {row['drawn']}",
                      "0.93 to 0.97", row["coverage"], 0.93 <= row["coverage"] <= 0.97) for row in rows]
    publish(TRIALS.name, targets, rows, COLUMNS, made=stores_in(TRIALS)[0].sessions()[-1])


if __name__ == "__main__":
    main()
