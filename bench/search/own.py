"""Search methods of your own beside published ones, on the emulated tables of real trials: minutes on one core.

    python -m bench.search.own examples.own_searcher.CoordinateSearch changes=3 [--tasks plays gsm8k] [--seeds 3]
    python -m bench.search.own my.First my.Second speed=2

Each word with dots is the path of a class like the one in examples/own_searcher.py; KEY=VALUE behind it are its
options. A search has 40 full-trial equivalents, of which the profile and the uniform baselines take 7.5. A row is a
method in an arena (a text, an emulator and a budget). Its regrets are of the searches' ends: 1 is the best uniform
choice that fits and 0 the best allocation known; above 1, nothing better than the baselines was found, which are
evaluated once and with noise. The spread is the least and the largest regret of the row's seeds: so few give no 95 %
interval that means anything. Published methods have the same seeds, from bench/results/search.json. "refused" is how
many proposals of a search the emulator refused as too far from its table: the mean over the row's searches, of a
published method over all of its ten.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from bench.collect.task import DATA, TASKS
from bench.report import RESULTS
from bench.search.kept import arena_of, published_rows
from bench.search.methods import EQUIVALENTS, Entry
from bench.search.play import Arena, arenas, play
from qra_bo.config import load_config
from qra_bo.oracle.emulator.emulator import FAMILIES
from qra_bo.pipeline.plan import budgets_of
from qra_bo.pipeline.run import make_setting
from qra_bo.searchers.base import SearchProblem, make_searcher
from qra_bo.sensitivity.profile import rehearsal_profile
from qra_bo.space import FloatArray
from qra_bo.utils.errors import ConfigError, UserError

BESIDE = {"random": "random", "NSGA-II": "NSGA-II", "TuRBO": "TuRBO",
          "knapsack": "bits by believed sensitivity, then ranks", "qra_bo": "qra_bo"}
"""Published methods in the table, by their titles in it."""


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
    (budget,) = budgets_of(config, setting.memory, setting.space).values()
    return setting.problem(budget, rehearsal_profile(setting.space), EQUIVALENTS)


def compare(methods: Mapping[str, Mapping[str, Any]], tasks: Sequence[str], seeds: int,
            published: Sequence[Mapping[str, Any]]) -> None:
    """Play ``seeds`` searches of every method in every arena; print the rows of each arena once it is done."""
    print(f"{seeds} of the 10 published seeds (--seeds 10: all; few rank methods only roughly), {EQUIVALENTS:g} "
          "full-trial equivalents a search; regrets at its end: the median over the seeds, the least and the largest")
    width = max(map(len, [*methods, *BESIDE]))
    print(f"{'arena':<28} {'method':<{width}} {'regret':>6} {'min to max':>14} {'seeds':>5} {'refused':>7}", flush=True)
    for task, family in itertools.product(tasks, FAMILIES):
        _say(f"fitting the {family} emulator of {task}")
        for arena in arenas(DATA / task, [family]):
            lines = [f"{name:<{width}} {cells}" for name, cells in _rows(arena, methods, seeds, published)]
            print("\n".join(f"{arena.name:<28} {line}" for line in lines), flush=True)


def _rows(arena: Arena, methods: Mapping[str, Mapping[str, Any]], seeds: int,
          published: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield name and cells of every method in ``arena``: those of one's own, which are played, and the published."""
    place = arena.oracle.table.facts.task, arena.oracle.emulator.family, arena.budget.text
    known = {row["method"]: row for row in published if arena_of(row) == place}
    scale = next(iter(known.values()))
    for name, options in methods.items():
        entry, runs = Entry(name, "", "peer", options), []
        for seed in range(seeds):
            _say(f"{arena.name}: {name}, search {seed + 1} of {seeds}")
            runs.append(play(arena, entry, seed, EQUIVALENTS))
        losses = np.array([run["trace"][-1][1] for run in runs])
        regrets = (losses - scale["best_known"]) / (scale["best_uniform"] - scale["best_known"])
        yield name, f"{spread(regrets)} {np.mean([run['refused'] for run in runs]):7.1f}"
    for name, title in BESIDE.items():
        row = known[title]
        yield name, f"{spread([row['finals'][str(seed)] for seed in range(seeds)])} {row['refused']:7.1f}"


def spread(regrets: Sequence[float] | FloatArray) -> str:
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
    given = parser.parse_intermixed_args(arguments)
    try:
        methods = methods_of(given.methods)
        for options in methods.values():
            make_searcher(options, rehearsal())  # a method that can't be made is told before tables are read
        compare(methods, given.tasks, given.seeds, published_rows(RESULTS / "search.json"))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
