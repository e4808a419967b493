"""Which trials choose best for a longer training at equal cost? Replayed on the table of curves, nothing is trained.

    python -m bench.length.promotion

Every rule may spend so many trials of 24 steps, on allocations of the table in a random order that fit a budget, and
chooses one for 240 steps: by short runs alone; by short runs, the best of which are trained whole for half the cost; by
successive halving of whole trainings, the best third of which goes on at 24 and at 72 steps (Jamieson and Talwalkar
2016, arXiv 1502.07943); or by whole trainings alone. Scored is the regret: the loss after 240 steps of what is chosen,
less that of the best that fits, over the budgets that allocations fill. All rules draw the same orders. Losses are of
one training seed, in which short runs and whole ones see the same text first.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.length.curves import SHORT, STEPS
from bench.report import RESULTS, publish
from qra_bo.space import FloatArray, IntArray

COSTS = (20, 30, 60)
"""What is spent, in trainings of ``SHORT`` steps."""
WHOLE = STEPS // SHORT
"""Cost of a whole training."""
FIT, DRAWS, THIRD = 12, 200, 3
"""Allocations below which a budget does not count, random orders, and the inverse of the share that goes on."""
RUNGS = (SHORT, 72, STEPS)
"""Steps after which halving looks at a whole training; each is among those that the table looks at."""


class Pool:
    """Losses of the allocations that fit a budget, in one random order.

    Args:
        short: After whole runs of ``SHORT`` steps, ``n``.
        rungs: On the way of whole trainings, ``n x 3``, after ``RUNGS``.
    """

    def __init__(self, short: FloatArray, rungs: FloatArray) -> None:
        self.short, self.rungs, self.final = short, rungs, rungs[:, -1]


def short_runs(pool: Pool, cost: int) -> int:
    """Return the best of ``cost`` short runs."""
    return int(pool.short[:cost].argmin())


def promoted(pool: Pool, cost: int) -> int:
    """Return the best, trained whole for half the cost, of those that are best in short runs for the other half."""
    whole = cost // 2 // WHOLE
    best = pool.short[:cost - WHOLE * whole].argsort(kind="stable")[:max(1, whole)]
    return int(best[pool.final[best].argmin()])


def halved(pool: Pool, cost: int) -> int:
    """Return what successive halving of as many whole trainings as ``cost`` pays for comes to."""
    alive: IntArray = np.arange(min(len(pool.final), halving_begins(cost)))
    for rung in range(len(RUNGS) - 1):
        alive = alive[pool.rungs[alive, rung].argsort(kind="stable")[:-(-len(alive) // THIRD)]]
    return int(alive[pool.final[alive].argmin()])


def cost_of_halving(n: int) -> float:
    """Return the cost of halving that begins with ``n`` trainings, each going on where it was left."""
    cost, before = 0.0, 0
    for steps in RUNGS:
        cost, before, n = cost + n * (steps - before) / SHORT, steps, -(-n // THIRD)
    return cost


@cache
def halving_begins(cost: int) -> int:
    """Return how many trainings halving that costs at most ``cost`` begins."""
    return max(n for n in range(1, cost + 1) if cost_of_halving(n) <= cost)


def whole_trainings(pool: Pool, cost: int) -> int:
    """Return the best of as many whole trainings as ``cost`` pays for."""
    return int(pool.final[:cost // WHOLE].argmin())


RULES: Mapping[str, Callable[[Pool, int], int]] = {
    "short runs alone": short_runs, "short runs, the best trained whole": promoted,
    "successive halving of whole trainings": halved, "whole trainings alone": whole_trainings}


def regrets(rows: Sequence[Mapping[str, Any]], cost: int) -> dict[str, FloatArray]:
    """Return the regret of every rule (nats), ``budgets x draws``."""
    stored, short = (np.array([r[key] for r in rows], dtype=np.float64) for key in ("stored_bytes", "short_loss"))
    curves = [dict(map(tuple, r["curve"])) for r in rows]
    rungs = np.array([[curve[steps] for steps in RUNGS] for curve in curves], dtype=np.float64)
    random = np.random.default_rng(0)
    found: dict[str, list[list[float]]] = {name: [] for name in RULES}
    for budget in np.unique(stored):
        fits = np.flatnonzero(stored <= budget)
        if len(fits) < FIT:
            continue
        orders = [random.permutation(fits) for _ in range(DRAWS)]
        pools = [Pool(short[order], rungs[order]) for order in orders]
        for name, rule in RULES.items():
            found[name].append([float(p.final[rule(p, cost)] - p.final.min()) for p in pools])
    return {name: np.array(each) for name, each in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.length.promotion", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=RESULTS / "length_table.json", help="rows of the table of curves")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    table = [r for r in json.loads(options.table.read_text(encoding="utf-8"))["rows"] if r["short_loss"] is not None]
    rows = [{"cost": cost, "rule": name, "allocations": len(table), "budgets": len(each),
             "regret": float(each.mean()), "regret_95": float(np.quantile(each, 0.95))}
            for cost in COSTS for name, each in regrets(table, cost).items()]
    publish("length_promotion", (), rows, ("cost", "rule", "budgets", "regret", "regret_95"), folder=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
