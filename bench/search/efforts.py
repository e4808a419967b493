"""Every effort at its own end on the tables: predicted, quick and normal, with what is learned from the other table.

    python -m bench.search.efforts [--seeds 10]
    python -m bench.search.efforts method.rates=null --out FOLDER

Regrets are on the scale of bench/results/search.json: 1 is the best uniform choice and 0 the best known. An effort is
conf/effort's: its calibration, uniform baselines, stop and limit. Calibrations are counted and find the table's rate.
Costs are in full-trial equivalents before the confirmation: profile, calibration, baselines, trials, and the repeats
by which a winner is chosen; normal's references are left out. What is predicted (``effort=instant``) has no trial and
so depends on no seed. With ``method.rates`` or ``method.prior`` a search is given those of the other table. Beside them
stand first proposal and end of the published search of 40 equivalents, and its peers that solve a knapsack over the
same sensitivities. The tables are of one model.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.collect.task import DATA, TASKS
from bench.emulator.emulator import FAMILIES
from bench.report import RESULTS, Target, publish
from bench.search.evidence import by_losses
from bench.search.kept import arena_of, published_rows
from bench.search.methods import OTHER_TABLE
from bench.search.play import ALONE, Arena, Game, arenas, other_task, with_files
from bench.search.summary import interval, regret_at
from qra_bo.config import RunConfig, load_config
from qra_bo.searchers.base import make_searcher
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.rates.files import load_rates
from qra_bo.searchers.structured import StructuredSearch
from qra_bo.study.baselines import calibration_choices, uniform_baselines
from qra_bo.study.choice import fails
from qra_bo.study.prediction import solved

SEARCH = "qra_bo"
KNAPSACKS = ("bits by believed sensitivity", "bits by believed sensitivity, then ranks")
EFFORTS = ("quick", "normal")
NO_WORSE, MEDIAN = 7, 0.20
"""Targets: arenas in which the prediction is no worse than the first proposal of the search, and its median regret."""
NEAR, NEAR_IN, QUICK_MEDIAN, QUICK_COST = 0.05, 6, 0.15, 10.0
"""Targets of quick: distance to the search's end, in how many arenas, median regret, and equivalents."""
HARD, HARD_REGRET = ("gsm8k", "network"), 0.35
Row = dict[str, Any]


def predicted_row(arena: Arena, published: Mapping[str, Mapping[str, Any]]) -> Row:
    """Return what is predicted in one arena, beside published searches.

    Args:
        arena: Where; its table's prior is not used.
        published: Rows of searches in this arena by their methods, which set the scale.
    """
    other, known = other_task(arena), published[SEARCH]
    rates = load_rates(str(DATA / other / ALONE))
    (allocation, row), = solved(arena.problem, rates.table(arena.problem), [1.0])
    uniform = min((a for a in uniform_baselines(arena.rules, arena.problem.profile)
                   if Observations(arena.problem).position(a) is not None), key=arena.true_loss)
    mean, sd = rates.difference(arena.problem, row, Observations(arena.problem).position(uniform))
    first = next(c for c in known["costs"] if c > known["after_baselines"] + 0.5)
    return {"task": arena.oracle.table.facts.task, "emulator": arena.oracle.emulator.family,
            "budget": arena.budget.text, "learned_from": other,
            "regret": (arena.true_loss(allocation) - known["best_known"]) / (known["best_uniform"]
                                                                             - known["best_known"]),
            "first_proposal": regret_at(known, first), "search_at_40": known["regret"],
            **{f"{name} at 40": published[name]["regret"] for name in KNAPSACKS},
            "predicted_difference": mean, "predicted_sd": sd,
            "difference": arena.true_loss(allocation) - arena.true_loss(uniform), **allocation.to_json()}


def ended(arena: Arena, config: RunConfig, seed: int, scale: tuple[float, float]) -> Row:
    """Return one search with an effort, up to its confirmation: regret of the candidate, costs, and trials proposed.

    Args:
        arena: Where.
        config: Holds effort and method.
        seed: Of the search.
        scale: Losses of the best known allocation and of the best uniform choice.
    """
    (best, uniform), effort, unit = scale, config.effort, arena.equivalent
    method = {key: OTHER_TABLE if key == "rates" and value is not None else value
              for key, value in config.method.target.items()}
    game = Game(arena, seed)
    choices = calibration_choices(uniform_baselines(arena.rules, arena.problem.profile)[0],
                                  effort.calibration_baselines)
    game.spent += unit * len(config.calibrate.lr_scales) * len(choices) * (len(config.calibrate.lr_scales) > 1)
    problem = replace(arena.problem, seed=seed, max_full_trials=float(effort.max_full_trials))
    searcher = make_searcher(with_files(arena, method), problem)
    assert isinstance(searcher, StructuredSearch)
    searcher.tell(game.baselines(effort.uniform_baselines))
    before, first, proposals, stopped = game.spent / unit, math.nan, 0, False
    while game.spent < effort.max_full_trials * unit:
        asked, chance = searcher.ask(1), searcher.chance_of_gain
        stopped = effort.stop is not None and chance is not None and chance < effort.stop
        if not asked or stopped:
            break
        searcher.tell([game.evaluate(asked[0])])
        proposals += 1
        if proposals == 1:
            first = (arena.true_loss(searcher.recommend()[0]) - best) / (uniform - best)
    assert game.best is not None
    chosen, least, repeats = searcher.recommend()[0], game.best[1], 0
    if fails(searcher.surrogate_check()) and chosen != least:
        chosen, repeats = by_losses(arena, game, chosen, least, seed), 2
    return {"first": first, "regret": (arena.true_loss(chosen) - best) / (uniform - best), "before": before,
            "spent": game.spent / unit + repeats, "proposals": proposals, "stopped": stopped}


def effort_fields(name: str, runs: Sequence[Row]) -> Row:
    """Return medians over the seeds of an effort in one arena, with the 95 % interval of the regret's."""
    finals = np.array([run["regret"] for run in runs])
    low, high = interval(finals)
    return {name: float(np.median(finals)), f"{name}_low": low, f"{name}_high": high, f"{name}_finals": finals.tolist(),
            f"{name}_first": float(np.median([run["first"] for run in runs])),
            f"{name}_spent": float(np.median([run["spent"] for run in runs])),
            f"{name}_before": float(np.median([run["before"] for run in runs])),
            f"{name}_proposals": [run["proposals"] for run in runs],
            f"{name}_stopped": float(np.mean([run["stopped"] for run in runs]))}


def targets_of(rows: Sequence[Mapping[str, Any]], seeds: int) -> list[Target]:
    """Return what is asked of the efforts over all arenas."""
    whole, least = len(rows) == 8, seeds >= 10
    kept = sum(r["regret"] <= r["first_proposal"] + 5e-3 for r in rows)
    median, quick = (float(np.median([r[key] for r in rows])) for key in ("regret", "quick"))
    near = sum(r["quick"] <= r["search_at_40"] + NEAR for r in rows)
    cost = float(np.median([r["quick_spent"] for r in rows]))
    hard = [r["normal"] for r in rows if (r["task"], r["emulator"]) == HARD]
    worst = max(hard, default=math.inf)
    return [Target("instant: arenas in which it is no worse than the published search's first proposal (to two digits)",
                   f">= {NO_WORSE} of 8", float(kept), whole and kept >= NO_WORSE),
            Target("instant: median regret", f"<= {MEDIAN:.2f}", median, whole and median <= MEDIAN),
            Target(f"quick: arenas in which it ends within {NEAR} of the published search at 40 equivalents",
                   f">= {NEAR_IN} of 8", float(near), whole and least and near >= NEAR_IN),
            Target("quick: median regret", f"<= {QUICK_MEDIAN:.2f}", quick, whole and least and quick <= QUICK_MEDIAN),
            Target("quick: median cost before the confirmation, full-trial equivalents", f"<= {QUICK_COST:g}", cost,
                   whole and least and cost <= QUICK_COST),
            Target(f"normal: larger median regret of {', '.join(HARD)}", f"< {HARD_REGRET}", worst,
                   whole and least and worst < HARD_REGRET)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search.efforts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the searches' configuration")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in published_rows(RESULTS / "search.json"):
        known.setdefault(arena_of(row), {})[row["method"]] = row
    configs, rows = {name: load_config([f"effort={name}", *options.overrides]) for name in EFFORTS}, []
    for arena in (arena for task in sorted(TASKS) for arena in arenas(DATA / task, list(FAMILIES))):
        here = known[arena.oracle.table.facts.task, arena.oracle.emulator.family, arena.budget.text]
        scale = here[SEARCH]["best_known"], here[SEARCH]["best_uniform"]
        rows.append(predicted_row(arena, here))
        for name, config in configs.items():
            rows[-1] |= effort_fields(name, [ended(arena, config, seed, scale) for seed in range(options.seeds)])
            print(f"{arena.name}: {name}: {rows[-1][name]:.3f} after {rows[-1][f'{name}_spent']:g}", flush=True)
    publish("search_efforts", targets_of(rows, options.seeds), rows,
            ("task", "emulator", "budget", "regret", "first_proposal", "quick_first", "quick", "quick_spent", "normal",
             "search_at_40", *(f"{name} at 40" for name in KNAPSACKS)), folder=options.out)


if __name__ == "__main__":
    main()
