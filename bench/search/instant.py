"""Regret of the predicted allocation (``effort=instant``) on the tables, with rates learned from the other table.

    python -m bench.search.instant

No trial is run, and so nothing depends on a seed. Regrets are on the scale of bench/results/search.json: 1 is the best
uniform choice and 0 the best known. Beside each stand the first proposal of the published search, for which profile,
calibration and uniform baselines were paid, and the regrets of its peers that solve a knapsack over the same
sensitivities at the end of their 40 full-trial equivalents. The tables are of one model.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.collect.task import DATA, TASKS
from bench.report import RESULTS, Target, publish
from bench.search.kept import arena_of, published_rows
from bench.search.play import ALONE, Arena, arenas
from bench.search.summary import regret_at
from qra_bo.oracle.emulator.emulator import FAMILIES
from qra_bo.searchers.structured.rates import row_of
from qra_bo.searchers.structured.transfer import load_prior
from qra_bo.study.baselines import uniform_baselines
from qra_bo.study.prediction import solved

SEARCH = "qra_bo"
KNAPSACKS = ("bits by believed sensitivity", "bits by believed sensitivity, then ranks")
NO_WORSE, MEDIAN = 7, 0.20
"""Targets: arenas in which it is no worse than the first proposal of the search, and its median regret."""
Row = dict[str, Any]


def predicted_row(arena: Arena, published: Mapping[str, Mapping[str, Any]]) -> Row:
    """Return the row of one arena.

    Args:
        arena: Where; its table's prior is not used.
        published: Rows of searches in this arena by their methods, which set the scale.
    """
    task = arena.oracle.table.facts.task
    (other,) = (t for t in TASKS if t != task)
    rates, known = load_prior(str(DATA / other / ALONE)).rates, published[SEARCH]
    (allocation, row), = solved(arena.problem, rates.table(arena.problem), [1.0])
    span = known["best_uniform"] - known["best_known"]
    uniform = min((a for a in uniform_baselines(arena.rules, arena.problem.profile)
                   if row_of(arena.problem, a) is not None), key=arena.true_loss)
    mean, sd = rates.difference(arena.problem, row, row_of(arena.problem, uniform))
    first = next(c for c in known["costs"] if c > known["after_baselines"] + 0.5)
    return {"task": task, "emulator": arena.oracle.emulator.family, "budget": arena.budget.text, "learned_from": other,
            "regret": (arena.true_loss(allocation) - known["best_known"]) / span,
            "first_proposal": regret_at(known, first), "search_at_40": known["regret"],
            **{f"{name} at 40": published[name]["regret"] for name in KNAPSACKS},
            "predicted_difference": mean, "predicted_sd": sd,
            "difference": arena.true_loss(allocation) - arena.true_loss(uniform), **allocation.to_json()}


def targets_of(rows: list[Row]) -> list[Target]:
    """Return what is asked of the prediction over all arenas."""
    kept, median = sum(r["regret"] <= r["first_proposal"] + 5e-3 for r in rows), float(np.median([r["regret"]
                                                                                               for r in rows]))
    return [Target("arenas in which the prediction is no worse than the search's first proposal (to two digits)",
                   f">= {NO_WORSE} of 8", float(kept), kept >= NO_WORSE and len(rows) == 8),
            Target("median regret of the prediction", f"<= {MEDIAN:.2f}", median, median <= MEDIAN)]


def main() -> None:
    known: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in published_rows(RESULTS / "search.json"):
        known.setdefault(arena_of(row), {})[row["method"]] = row
    rows = [predicted_row(arena, known[arena.oracle.table.facts.task, arena.oracle.emulator.family, arena.budget.text])
            for task in sorted(TASKS) for arena in arenas(DATA / task, list(FAMILIES))]
    publish("search_instant", targets_of(rows), rows, ("task", "emulator", "budget", "regret", "first_proposal",
                                                       "search_at_40", "predicted_difference", "difference"))


if __name__ == "__main__":
    main()
