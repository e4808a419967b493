"""Compare search methods on emulated tables of real trials: tasks x emulators x budgets x seeds x methods.

    python -m bench.search [--tasks plays gsm8k] [--seeds 10] [--methods qra_bo TPE ...] [--ablations] [--part 1/2]

Every finished search is a line of outputs/bench-search/runs.jsonl and is not repeated while the table and the method's
settings stay the same: the same command resumes, and several processes can share the work (--part K/N). At the end, or
with --summary alone, bench/results/search.json is written.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.emulator.emulator import FAMILIES
from bench.emulator.table import ROWS
from bench.report import RESULTS, publish
from bench.search.kept import kept_rows, published_rows
from bench.search.methods import ABLATIONS, COMPARED, EQUIVALENTS, EVERYTHING, RETIRED, TRANSFER, Entry
from bench.search.play import Arena, arenas, play
from bench.search.summary import paired_rows, search_rows, targets_of
from bench.store import append_line, read_lines
from bench.tasks import DATA, REFERENCE_BUDGETS, TASKS
from qra_bo.utils.errors import MissingExtraError, UserError

RUNS = Path("outputs") / "bench-search" / "runs.jsonl"
Run = dict[str, Any]


def load_runs(path: Path) -> list[Run]:
    """Finished searches; a cut-off last line is left out."""
    return [json.loads(line) for line in read_lines(path)]


def key(run: Run) -> tuple[Any, ...]:
    """What makes two searches the same."""
    return tuple(run[k] for k in ("arena", "method", "settings", "seed", "equivalents", "rows_sha256"))


def wanted(places: Sequence[Arena], entries: Sequence[Entry],
           seeds: int) -> Iterator[tuple[Arena, Entry, int]]:
    """All searches, the seeds outermost: an early stop leaves whole comparisons of fewer seeds."""
    for seed in range(seeds):
        for arena in places:
            for entry in entries:
                yield arena, entry, seed


def run_all(options: argparse.Namespace, entries: Sequence[Entry]) -> None:
    """Every search that is missing, each written down when it has ended."""
    part, parts = (int(x) for x in options.part.split("/"))
    done = {key(run) for run in load_runs(options.runs)}
    places = [a for task in options.tasks for a in arenas(DATA / task, options.emulators)
              if a.budget.text in options.budgets]
    missing: set[str] = set()
    for number, (arena, entry, seed) in enumerate(wanted(places, entries, options.seeds)):
        identity = (arena.name, entry.name, entry.settings_sha256, seed, options.equivalents,
                    arena.oracle.describe()["data_sha256"])
        if number % parts != part - 1 or identity in done or entry.name in missing:
            continue
        try:
            run = play(arena, entry, seed, options.equivalents)
        except MissingExtraError as error:
            print(f"{entry.name} is left out: {error}", file=sys.stderr)
            missing.add(entry.name)
            continue
        append_line(options.runs, json.dumps(run))
        print(f"{arena.name}: {entry.name}, seed {seed}: incumbent {run['trace'][-1][1]:.4f} where the best uniform "
              f"choice has {run['best_uniform']:.4f}; {run['cpu_seconds']:.1f} s", flush=True)


def summarise(options: argparse.Namespace) -> None:
    """Rows and targets of what was run on the tables as they are now."""
    places = [a for task in options.tasks for a in arenas(DATA / task, list(FAMILIES)[:1])]
    current = {a.oracle.describe()["data_sha256"] for a in places}
    settings = {(e.name, e.settings_sha256) for e in EVERYTHING.values()}
    runs = [run for run in load_runs(options.runs) if run["rows_sha256"] in current
            and (run["method"], run["settings"]) in settings and run["equivalents"] == options.equivalents]
    published = published_rows(options.kept) if options.kept else []
    rows = search_rows(runs, kept_rows(published, runs, settings))
    expected = [(task, family, budget) for task in sorted(TASKS) for family in FAMILIES
                for budget, _ in REFERENCE_BUDGETS]
    targets = targets_of(rows, expected)
    publish("search", targets, [*({"what": "search", **row} for row in rows),
                                *({"what": "against qra_bo", **row} for row in paired_rows(rows))],
            ["task", "emulator", "budget", "method", "seeds", "regret", "low", "high", "cost_to_best_peer",
             "cpu_seconds"], folder=options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    have = [task for task in TASKS if (DATA / task / ROWS).exists()]
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=have)
    parser.add_argument("--emulators", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--budgets", nargs="+", choices=[b for b, _ in REFERENCE_BUDGETS],
                        default=[b for b, _ in REFERENCE_BUDGETS])
    parser.add_argument("--methods", nargs="+",
                        choices=[name for name, entry in EVERYTHING.items() if entry not in RETIRED],
                        help="those that are compared by default")
    parser.add_argument("--ablations", action="store_true",
                        help="also ours with one part taken away at a time, and ours taught by another task")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--equivalents", type=float, default=EQUIVALENTS, help="what a search may spend")
    parser.add_argument("--part", default="1/1", help="K/N: this process makes every N-th search from the K-th on")
    parser.add_argument("--runs", type=Path, default=RUNS, help="file of finished searches")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--kept", type=Path, help="a search.json: its rows count too where no search was made anew and "
                        "the table and the method's settings are what they were")
    parser.add_argument("--summary", action="store_true", help="only summarise what was run")
    options = parser.parse_args(arguments)
    if not options.tasks:
        print(f"there is no table of real trials in {DATA}: it comes with the repository", file=sys.stderr)
        return 2
    import torch

    torch.set_num_threads(1)
    names = options.methods or [e.name for e in COMPARED]
    if options.ablations:
        names += [e.name for e in (*ABLATIONS, *TRANSFER) if e.name not in names]
    try:
        if not options.summary:
            run_all(options, [EVERYTHING[name] for name in names])
        if options.part == "1/1":
            summarise(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
