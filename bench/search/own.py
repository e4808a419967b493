"""Search methods of your own beside published ones, on losses emulated from tables of real trials: minutes on one core.

    python -m bench.search.own examples.own_searcher.CoordinateSearch changes=3 [--tasks plays gsm8k] [--seeds 3]
    python -m bench.search.own my.First my.Second speed=2 --emulators boosted --budgets uniform:4,4 --out FILE.json

Each word with dots is the path of a class like the one in examples/own_searcher.py; KEY=VALUE behind it are its
options. A search has 40 full-trial equivalents, of which the profile and the uniform baselines take 7.5. A row is a
method in an arena (a text, an emulator and a budget). Its regrets are of the searches' ends: 1 is the best uniform
choice that fits and 0 the best allocation known; above 1, nothing better than the baselines was found, which are
evaluated once and with noise. The spread is the least and the largest regret of the row's seeds: so few give no 95 %
interval that means anything. Differences to the published methods, on the same seeds and arenas, come last: their
interval is over arenas (of fewer than four, over searches). Published methods have the same seeds, from
bench/results/search.json. "refused" is how many proposals of a search were over the budget, or too far from the table
for its emulator: the mean over the row's searches, of a published method over all of its own. ``--out`` has the rows
with the regret of every seed; of one's own methods also refusals and the trace, pairs of cost (full-trial equivalents)
and the incumbent's regret, of published ones the median ``curve`` at ``costs``.
"""

import argparse
import itertools
import json
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench.emulator.emulator import FAMILIES
from bench.pages.tables import plain
from bench.report import RESULTS
from bench.search.kept import Row, arena_of, published_rows
from bench.search.methods import EQUIVALENTS, Entry
from bench.search.play import Arena, arenas, play
from bench.tasks import DATA, REFERENCE_BUDGETS, TASKS
from qra_bo.config import load_config
from qra_bo.pipeline.prepare import checked_budget, make_setting
from qra_bo.searchers.base import SearchProblem, make_searcher
from qra_bo.sensitivity.profile import typical_profile
from qra_bo.study.intervals import paired_interval
from qra_bo.utils.errors import ConfigError, UserError
from qra_bo.utils.formatting import signed

BESIDE = {plain(name): name for name in ("random", "NSGA-II", "TuRBO", "blind mix", "sequential bits, then ranks",
                                         "bits by believed sensitivity, then ranks", "qra_bo")}
"""Published methods by their titles in the documentation."""
LEAST_ARENAS = 4
"""Fewest arenas over which an interval says something."""


def methods_of(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return ``_target_`` and options of every method by its name: the class's, with its options where two share it.

    Args:
        words: ``PACKAGE.MODULE.CLASS``, each followed by its options as ``KEY=VALUE``, values in YAML.

    Raises:
        ConfigError: If a word is neither, or two methods are the same.
    """
    groups: list[list[str]] = []
    for word in words:
        if "=" in word and groups:
            groups[-1].append(word)
        elif "=" in word or "." not in word:
            raise ConfigError("a method is given as PACKAGE.MODULE.CLASS and its options behind it as KEY=VALUE, e.g. "
                              f"changes=3; got {word!r}")
        else:
            groups.append([word])
    short = [group[0].rpartition(".")[2] for group in groups]
    names = [" ".join([name, *group[1:]]) if short.count(name) > 1 else name
             for name, group in zip(short, groups, strict=True)]
    if len(set(names)) < len(names):
        raise ConfigError(f"every method is given once, or with options that differ; got {', '.join(names)}")
    return {name: {"_target_": target, **{key: yaml.safe_load(value) for key, _, value in
                                          (option.partition("=") for option in given)}}
            for name, (target, *given) in zip(names, groups, strict=True)}


def rehearsal() -> SearchProblem:
    """Return a small problem."""
    config = load_config(["+model=tiny", "data=tiny", "oracle=synthetic", "budget=uniform:4,4"])
    setting = make_setting(config)
    budget = checked_budget(setting)
    return setting.problem(budget, typical_profile(setting.space), EQUIVALENTS)


def places_of(tasks: Sequence[str], families: Sequence[str], budgets: Sequence[str]) -> Iterator[Arena]:
    """Yield the arenas of these texts, emulators and budgets; an emulator is fitted once its turn comes."""
    for task, family in itertools.product(tasks, families):
        _say(f"fitting the {family} emulator of {task}")
        yield from (arena for arena in arenas(DATA / task, [family]) if arena.budget.text in budgets)


def compare(methods: Mapping[str, Mapping[str, Any]], places: Iterable[Arena], seeds: int,
            published: Sequence[Mapping[str, Any]], out: Path | None) -> set[str]:
    """Play ``seeds`` searches of every method in every arena; print the rows of each arena once it is done, and write
    all so far to ``out``. A method that fails is left out from then on; returns those that did."""
    print(f"{seeds} of the 10 published seeds (--seeds 10: all; few rank methods only roughly), {EQUIVALENTS:g} "
          "full-trial equivalents a search; regrets at its end: the median over the seeds, the least and the largest")
    width = max(map(len, [*methods, *BESIDE]))
    print(f"{'arena':<28} {'method':<{width}} {'regret':>6} {'min to max':>14} {'seeds':>5} {'refused':>7}", flush=True)
    rows, failed = list[Row](), set[str]()
    for arena in places:
        here = rows_of(arena, {name: methods[name] for name in methods if name not in failed}, seeds, published)
        failed |= methods.keys() - {row["method"] for row in here}
        for row in here:
            regrets = spread([row["regrets"][str(seed)] for seed in range(seeds)])
            print(f"{arena.name:<28} {row['method']:<{width}} {regrets} {row['refused']:7.1f}", flush=True)
        rows += here
        if out is not None:
            out.write_text(json.dumps({"equivalents": EQUIVALENTS, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(*differences(rows, [name for name in methods if name not in failed], seeds), sep="\n")
    return failed


def differences(rows: Sequence[Row], names: Sequence[str], seeds: int) -> Iterator[str]:
    """Yield a line for every one of one's own methods beside a published one: the mean difference of their regrets in
    all arenas, with a 95 % interval over arenas, or below ``LEAST_ARENAS`` over searches."""
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append([row["regrets"][str(seed)] for seed in range(seeds)])
    for name, other in itertools.product(names, BESIDE):
        less = np.subtract(found[name], found[other])
        values, over = (less.mean(axis=1), f"{len(less)} arenas") if len(less) >= LEAST_ARENAS else \
            (less.ravel(), f"{less.size} searches")
        between = paired_interval(values.tolist()) if len(values) > 1 else None
        shown = "" if between is None else f" (95 % over {over}: {signed(between.low, 2)} to {signed(between.high, 2)})"
        yield f"{name} less {other}: {signed(float(values.mean()), 2)}{shown}"


def rows_of(arena: Arena, methods: Mapping[str, Mapping[str, Any]], seeds: int,
            published: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row of every method in ``arena``: those of one's own, which are played, and the published. Where one
    raises, its traceback is printed."""
    task, family, budget = place = arena.oracle.table.facts.task, arena.oracle.emulator.family, arena.budget.text
    known = {row["method"]: row for row in published if arena_of(row) == place}
    scale = next(iter(known.values()))
    best, uniform = scale["best_known"], scale["best_uniform"]
    base = {"task": task, "emulator": family, "budget": budget, "best_known": best, "best_uniform": uniform}
    rows = []
    for name, options in methods.items():
        try:
            played = _played(arena, name, options, seeds, best, uniform)
        except Exception:  # of a class that others wrote
            _say(f"{traceback.format_exc()}{arena.name}: {name} failed and is left out")
        else:
            rows.append({**base, "method": name, "options": dict(options), **played})
    for name, row in ((name, known[title]) for name, title in BESIDE.items()):
        rows.append({**base, "method": name, "regrets": row["finals"], "refused": row["refused"],
                     "costs": row["costs"], "curve": row["curve"]})
    return rows


def _played(arena: Arena, name: str, options: Mapping[str, Any], seeds: int, best: float, uniform: float) -> Row:
    """Return regrets, refusals and traces of a method's searches, by seed."""
    traces, refusals = dict[str, list[list[float]]](), dict[str, int]()
    for seed in range(seeds):
        _say(f"{arena.name}: {name}, search {seed + 1} of {seeds}")
        run = play(arena, Entry(name, "", "own", options), seed, EQUIVALENTS)
        traces[str(seed)] = [[cost, (loss - best) / (uniform - best)] for cost, loss in run["trace"]]
        refusals[str(seed)] = run["refused"]
        if (cost := traces[str(seed)][-1][0]) < EQUIVALENTS - 1:
            _say(f"{name}: proposed nothing more at {cost:.1f} of {EQUIVALENTS:g} full-trial equivalents")
        if run["broken"]:
            _say(f"{name}: {run['broken']} proposals over the budget, off the ladders or repeated, which end a run")
    return {"regrets": {seed: trace[-1][1] for seed, trace in traces.items()},
            "refused": float(np.mean(list(refusals.values()))), "refusals": refusals, "traces": traces}


def spread(regrets: Sequence[float]) -> str:
    """Return median, least and largest of regrets, one a seed, and their number, as cells of a row."""
    return f"{np.median(regrets):6.2f} {f'{np.min(regrets):.2f} to {np.max(regrets):.2f}':>14} {len(regrets):5d}"


def _say(doing: str) -> None:
    print(doing, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.search.own", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="CLASS [KEY=VALUE ...]")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, choices=range(1, 11), default=3, metavar="1...10")
    parser.add_argument("--emulators", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    budgets = [text for text, _ in REFERENCE_BUDGETS]
    parser.add_argument("--budgets", nargs="+", choices=budgets, default=budgets)
    parser.add_argument("--out", type=Path, metavar="FILE.json",
                        help="rows with every seed's regret, refusals and trace")
    given = parser.parse_intermixed_args(arguments)
    try:
        if given.out is not None and not given.out.resolve().parent.is_dir():
            raise ConfigError(f"--out must be a file in a folder that exists; got {given.out}")
        methods = methods_of(given.methods)
        for options in methods.values():
            make_searcher(options, rehearsal())  # a method that can't be made is told before tables are read
        failed = compare(methods, places_of(given.tasks, given.emulators, given.budgets), given.seeds,
                         published_rows(RESULTS / "search.json"), given.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        _say("stopped; --out has the arenas that were done")
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
