"""A search method of your own against published ones, on the emulated tables of real trials: minutes on one core.

    python -m bench.search.own examples.own_searcher.CoordinateSearch changes=3 [--tasks plays gsm8k] [--seeds 3]

The first argument is the dotted path of a class like the one in examples/own_searcher.py; KEY=VALUE are its options.
A search has 40 full-trial equivalents, of which the profile and the uniform baselines take 7.5. Regrets are medians
over the seeds: 1 is the best uniform choice that fits and 0 the best allocation known; above 1, nothing better than
the baselines was found, which are evaluated once and with noise. Those of other methods are read from
bench/results/search.json (10 seeds). "refused" counts proposals that are over the budget or too far from the table.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from bench.collect.task import DATA, TASKS
from bench.report import RESULTS
from bench.search.kept import arena_of, published_rows
from bench.search.methods import EQUIVALENTS, Entry
from bench.search.play import arenas, play
from qra_bo.config import load_config
from qra_bo.oracle.emulator.emulator import FAMILIES
from qra_bo.pipeline.plan import budgets_of
from qra_bo.pipeline.run import make_setting
from qra_bo.searchers.base import SearchProblem, make_searcher
from qra_bo.sensitivity.profile import rehearsal_profile
from qra_bo.utils.errors import ConfigError, UserError

BESIDE = ("random", "sequential bits", "NSGA-II", "qra_bo")
"""Published methods in the table."""


def options_of(target: str, given: Sequence[str]) -> dict[str, Any]:
    """Return ``_target_`` and the options of ``KEY=VALUE``, values in YAML.

    Raises:
        ConfigError: If one has no ``=``.
    """
    wrong = [text for text in given if "=" not in text]
    if wrong:
        raise ConfigError(f"options of a method are given as KEY=VALUE, e.g. changes=3; got {wrong[0]!r}")
    return {"_target_": target, **{key: yaml.safe_load(value) for key, _, value in (g.partition("=") for g in given)}}


def rehearsal() -> SearchProblem:
    """Return a small problem."""
    config = load_config(["+model=tiny", "data=tiny", "oracle=synthetic", "budget=uniform:4,4"])
    setting = make_setting(config)
    (budget,) = budgets_of(config, setting.memory, setting.space).values()
    return setting.problem(budget, rehearsal_profile(setting.space), EQUIVALENTS)


def compare(options: Mapping[str, Any], tasks: Sequence[str], seeds: int,
            published: Sequence[Mapping[str, Any]]) -> None:
    """Play ``seeds`` searches in every arena and print a line for each arena once it is done."""
    entry = Entry("yours", "", "peer", options)
    print(f"{'arena':<32} {'refused':>8} {'yours':>8} " + " ".join(f"{name:>15}" for name in BESIDE))
    for task in tasks:
        print(f"fitting the emulators of {task}", file=sys.stderr, flush=True)
        for arena in arenas(DATA / task, list(FAMILIES)):
            print(f"{arena.name}: {seeds} searches", file=sys.stderr, flush=True)
            runs = [play(arena, entry, seed, EQUIVALENTS) for seed in range(seeds)]
            known = {row["method"]: row for row in published if arena_of(row) == arena_of(runs[0])}
            scale = next(iter(known.values()))
            losses = np.array([run["trace"][-1][1] for run in runs])
            own = (losses - scale["best_known"]) / (scale["best_uniform"] - scale["best_known"])
            refused = np.median([run["refused"] for run in runs])
            print(f"{arena.name:<32} {refused:8.0f} {np.median(own):8.2f} "
                  + " ".join(f"{known[name]['regret']:15.2f}" for name in BESIDE), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.search.own", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="PACKAGE.MODULE.CLASS")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_intermixed_args(arguments)
    try:
        options = options_of(given.target, given.options)
        make_searcher(options, rehearsal())  # a method that can't be made is told before tables are read
        compare(options, given.tasks, given.seeds, published_rows(RESULTS / "search.json"))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
