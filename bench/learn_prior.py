"""Learn the priors from the tables of real trials: the one that comes with the package, and one of every table alone.

    python -m bench.learn_prior

The package's is learned from all tables (qra_bo/searchers/priors/smollm2_135m.json). One of a single table
(bench/data/TASK/prior.json) is for searches on the others, so that a method is scored on a task that its prior has not
seen. The tables are of one model: what a prior is worth on another model is not known from them.
"""

from pathlib import Path

from bench.collect.task import DATA, TASKS
from bench.emulator.emulator import FAMILIES, usable
from bench.search.play import ALONE, arenas
from bench.search.quality import told_of
from qra_bo.searchers.priors import prior_file
from qra_bo.searchers.structured.transfer import Lesson, learn_prior, lesson_of, save_prior

SHIPPED = "smollm2_135m"


def lesson_of_table(folder: Path) -> tuple[str, Lesson]:
    """Return a table in words and what it tells; budgets bind what is proposed, not what is learned."""
    arena = arenas(folder, list(FAMILIES)[:1])[0]
    table, data = arena.oracle.table, usable(arena.oracle.table)
    told = told_of(arena.problem, data.allocations, data.targets[:, -1])
    found = lesson_of(arena.problem, told, arena.oracle.emulator.rate)
    if found is None:
        raise SystemExit(f"the table of {table.facts.task} holds too few losses to learn from")
    return f"{len(told)} allocations of {table.facts.task}, {table.facts.model}", found


def main() -> None:
    lessons = {task: lesson_of_table(DATA / task) for task in sorted(TASKS)}
    files = [prior_file(SHIPPED), *(DATA / task / ALONE for task in lessons)]
    for path, used in zip(files, [list(lessons), *([task] for task in lessons)], strict=True):
        prior = learn_prior(dict(lessons[task] for task in used))
        save_prior(prior, path)
        print(f"{path}: rates {prior.rates.slopes.round(4).tolist()}, error {prior.rates.error:.4f} nats, factor on "
              f"the learning rate {prior.lr_scale:.3g}")


if __name__ == "__main__":
    main()
