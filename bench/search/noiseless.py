"""Cost of noise to a search: the same searches on emulators without noise.

    python -m bench.search.noiseless [--seeds 10] [--methods NAME ...]

Regrets are on the scale of bench/results/search.json, whose medians with noise are repeated: 0 is the best of all
searches with noise, so that one without noise may end below it. Rows go to bench/results/search_noiseless.json.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.collect.task import DATA
from bench.emulator.emulator import FAMILIES
from bench.report import RESULTS, publish
from bench.search.kept import arena_of, published_rows
from bench.search.methods import EQUIVALENTS, EVERYTHING
from bench.search.play import Arena, arenas, play
from bench.search.summary import interval, regrets

METHODS = ("qra_bo", "bits by believed sensitivity, then ranks")
Row = dict[str, Any]


def row_without_noise(arena: Arena, known: Mapping[str, Any], seeds: int, equivalents: float = EQUIVALENTS) -> Row:
    """Final regrets of ``seeds`` searches (at least 1) in an arena whose oracle has no noise.

    Args:
        arena: Where.
        known: The published row of the method in this arena, which sets the scale.
        seeds: How many, from 0 on.
        equivalents: What each may spend.
    """
    entry, end = EVERYTHING[known["method"]], np.array([np.inf])
    finals = np.concatenate([regrets(play(arena, entry, seed, equivalents), known["best_known"],
                                     known["best_uniform"], end) for seed in range(seeds)])
    low, high = interval(finals)
    return {**{key: known[key] for key in ("task", "emulator", "budget", "method")}, "seeds": seeds,
            "regret_with_noise": known["regret"], "regret": float(np.median(finals)), "low": low, "high": high,
            "finals": finals.tolist()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search.noiseless", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--methods", nargs="+", choices=list(EVERYTHING), default=list(METHODS))
    parser.add_argument("--published", type=Path, default=RESULTS / "search.json", help="gives the scale")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known = {(arena_of(row), row["method"]): row for row in published_rows(options.published)}
    rows = []
    for task in sorted({task for (task, _, _), _ in known}):
        for arena in arenas(DATA / task, list(FAMILIES), noise=0.0):
            place = task, arena.oracle.emulator.family, arena.budget.text
            for method in (m for m in options.methods if (place, m) in known):  # transfer is on one task alone
                rows.append(row_without_noise(arena, known[place, method], options.seeds))
                print(f"{arena.name}: {method}: {rows[-1]['regret']:.3f}, with noise "
                      f"{rows[-1]['regret_with_noise']:.3f}", flush=True)
    publish("search_noiseless", [], rows, ("task", "emulator", "budget", "method", "seeds", "regret_with_noise",
                                           "regret", "low", "high"), folder=options.out)


if __name__ == "__main__":
    main()
