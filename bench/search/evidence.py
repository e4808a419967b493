"""When a search may stop, and whose ranking decides its winner: emulated searches, looked at after every proposal.

    python -m bench.search.evidence [--seeds 25] [--proposals 32] [--summary]

Searches begin with the rates learned from the other table, as a run does with those of the package. Regrets are on the
scale of bench/results/search.json: 1 is the best uniform choice, 0 the best known. Searches are written to a file as
they end, and a later call goes on. With 25 seeds there are 200 over the 8 arenas.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.collect.task import DATA, TASKS
from bench.emulator.emulator import FAMILIES
from bench.report import RESULTS, Target, publish
from bench.search.kept import arena_of, published_rows
from bench.search.play import ALONE, Arena, Game, arenas, other_task
from qra_bo.oracle.protocol import quiet
from qra_bo.searchers.structured import StructuredSearch
from qra_bo.space import Allocation
from qra_bo.study.choice import fails
from qra_bo.trials import TrialSpec

RUNS = Path("outputs") / "bench-search" / "evidence.jsonl"
EFFORT = 12.0
"""Full-trial equivalents that the method divides: those of effort=quick."""
STOPS = (0.05, 0.1, 0.2)
LEAST = 0.2
"""effort.stop of effort=quick."""
OFTEN, SEARCHES = 0.10, 200
REPEAT = 1000
"""Added to a search's seed: the training seed of repeats."""
Row = dict[str, Any]


def searched(arena: Arena, seed: int, proposals: int, scale: tuple[float, float]) -> Row:
    """Return one search: after every proposal its chance of a gain, and regrets of the candidates for the winner.

    Args:
        arena: Where.
        seed: Of the search.
        proposals: How many.
        scale: Losses of the best known allocation and of the best uniform choice.
    """
    best, uniform = scale
    game, problem = Game(arena, seed), replace(arena.problem, seed=seed, max_full_trials=EFFORT)
    searcher, steps = StructuredSearch(problem, rates=str(DATA / other_task(arena) / ALONE)), []
    searcher.tell(game.baselines())

    def regret(a: Allocation) -> float:
        return (arena.true_loss(a) - best) / (uniform - best)

    for _ in range(proposals):
        asked = searcher.ask(1)
        if not asked:
            break
        chance = searcher.chance_of_gain
        searcher.tell([game.evaluate(asked[0])])
        assert game.best is not None
        ours, least, check = searcher.recommend()[0], game.best[1], searcher.surrogate_check()
        steps.append({"chance": chance, "model": regret(ours), "measured": regret(least), "fails": fails(check),
                      "rule": regret(by_losses(arena, game, ours, least, seed) if fails(check) else ours)})
    noise = math.sqrt(2.0) * float(arena.oracle.emulator.noise.at(np.array([uniform]))[0])
    return {"task": arena.oracle.table.facts.task, "emulator": arena.oracle.emulator.family,
            "budget": arena.budget.text, "seed": seed, "rates": other_task(arena), "proposals": proposals,
            "noise": noise / (uniform - best), "steps": steps}


def by_losses(arena: Arena, game: Game, ours: Allocation, least: Allocation, seed: int) -> Allocation:
    """Return the lower of both by the mean of two training seeds, as ``choose`` does."""
    if ours == least:
        return least

    def total(a: Allocation) -> float:
        spec = TrialSpec(a, arena.problem.high_steps, arena.problem.high_steps, REPEAT + seed,
                         learning_rate=arena.own_rate)
        first = next(e.loss for e in game.trials if e.allocation == a and e.loss is not None)
        return first + (arena.oracle.evaluate(spec, quiet).loss or math.inf)

    return ours if total(ours) < total(least) else least


def stop_of(run: Row, least: float) -> int:
    """Return the number of proposals before a search with ``effort.stop=least`` ends."""
    return next((i for i, step in enumerate(run["steps"]) if step["chance"] is not None and step["chance"] < least),
                len(run["steps"]))


def stop_row(runs: Sequence[Row], least: float) -> Row:
    """Return how often going on to the end gained more than the noise of a comparison, and where searches stopped."""
    stops = [stop_of(run, least) for run in runs]
    gains = [run["steps"][stop - 1]["rule"] - run["steps"][-1]["rule"] for run, stop in zip(runs, stops, strict=True)]
    missed = [gain > run["noise"] for gain, run in zip(gains, runs, strict=True)]
    return {"what": "stop", "least": least, "searches": len(runs), "proposals": max(len(run["steps"]) for run in runs),
            "missed": float(np.mean(missed)), "noise": float(np.mean([run["noise"] for run in runs])),
            "stops": np.quantile(stops, [0, 0.25, 0.5, 0.75, 1.0]).tolist(),
            "regret_at_stop": float(np.median([r["steps"][s - 1]["rule"] for r, s in zip(runs, stops, strict=True)])),
            "regret_at_end": float(np.median([r["steps"][-1]["rule"] for r in runs])),
            "mean_gain": float(np.mean(gains))}


def arena_rows(runs: Sequence[Row]) -> list[Row]:
    """Return ``stop_row`` of every arena at effort.stop of effort=quick."""
    names = sorted({arena_of(run) for run in runs})
    return [{**stop_row([run for run in runs if arena_of(run) == name], LEAST), "what": "stop in an arena",
             "task": name[0], "emulator": name[1], "budget": name[2]} for name in names]


def winner_row(runs: Sequence[Row], at: int) -> Row:
    """Return mean regrets of delivering the model's best, the measured best and the rule's after ``at`` proposals."""
    steps = [run["steps"][min(at, len(run["steps"])) - 1] for run in runs]
    return {"what": "winner", "after": at, "searches": len(runs), "check_failed": float(np.mean([s["fails"]
                                                                                               for s in steps])),
            **{f"regret_{name}": float(np.mean([s[name] for s in steps])) for name in ("model", "measured", "rule")}}


def summarise(runs: Sequence[Row], proposals: int, folder: Path) -> None:
    """Publish the rows and the target of the stopping rule."""
    rows = [stop_row(runs, least) for least in STOPS] + arena_rows(runs)
    rows += [winner_row(runs, at) for at in (4, 8, 16, 32) if at <= proposals]
    missed = next(r["missed"] for r in rows if r.get("least") == LEAST)  # over all arenas, which come first
    what = f"searches that gain more than the noise by going on to {proposals} proposals after effort.stop={LEAST:g}"
    enough = len(runs) >= SEARCHES
    note = "" if enough else f" ({len(runs)} searches, not {SEARCHES})"
    publish("search_evidence", [Target(what + note, f"<= {OFTEN:.0%} of {SEARCHES}", missed,
                                       enough and missed <= OFTEN)], rows,
            ("what", "task", "emulator", "budget", "least", "after", "searches", "missed", "stops", "regret_at_stop",
             "regret_at_end", "check_failed", "regret_model", "regret_measured", "regret_rule"), folder=folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search.evidence", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--proposals", type=int, default=32)
    parser.add_argument("--runs", type=Path, default=RUNS, help="file of finished searches")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--summary", action="store_true", help="only summarise what was run")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = [json.loads(line) for line in options.runs.read_text().splitlines()] if options.runs.exists() else []
    runs = [run for run in runs if run["proposals"] == options.proposals and "rates" in run]
    if not options.summary:
        options.runs.parent.mkdir(parents=True, exist_ok=True)
        scales = {arena_of(row): (row["best_known"], row["best_uniform"]) for row in published_rows(
            RESULTS / "search.json") if row["kind"] == "qra_bo"}
        places = [arena for task in sorted(TASKS) for arena in arenas(DATA / task, list(FAMILIES))]
        done = {(arena_of(run), run["seed"]) for run in runs}
        for seed in range(options.seeds):
            for arena in places:
                where = arena.oracle.table.facts.task, arena.oracle.emulator.family, arena.budget.text
                if (where, seed) not in done:
                    runs.append(searched(arena, seed, options.proposals, scales[where]))
                    with open(options.runs, "a", encoding="utf-8") as file:
                        file.write(json.dumps(runs[-1]) + "\n")
                    print(f"{arena.name}: seed {seed}", flush=True)
    if runs:
        summarise(runs, options.proposals, options.out)


if __name__ == "__main__":
    main()
