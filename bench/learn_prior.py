"""Learn the prior that comes with the package from a table of real trials.

    python -m bench.learn_prior plays --out qra_bo/priors/smollm2_135m.json

It learns from every allocation of the table. What it is worth on another task is a row of python -m bench.search.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.collect.task import DATA, TASKS
from bench.search.play import arenas
from bench.search.quality import told_of
from qra_bo.oracle.emulator.emulator import FAMILIES, usable
from qra_bo.searchers.structured.transfer import combine, fitted_scales, save_prior


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.learn_prior", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    arena = arenas(DATA / options.task, list(FAMILIES)[:1])[0]  # budgets bind what is proposed, not what is learned
    table, problem = arena.oracle.table, arena.problem
    data = usable(table)
    told = told_of(problem, data.allocations, data.targets[:, -1])
    scales = fitted_scales(problem, told)
    if scales is None:
        raise SystemExit(f"the table of {options.task} holds too few losses to learn from")
    prior = combine([scales])
    save_prior(prior, [f"{len(told)} allocations of {options.task}, {table.facts.model}"], options.out)
    for name, part in prior.items():
        print(f"{name}: {part.scale:.3g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
