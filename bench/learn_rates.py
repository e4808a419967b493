"""Learn exchange rates from the tables of real trials: those that come with the package, and those of each table alone.

    python -m bench.learn_rates

The package's are learned from all tables (qra_bo/searchers/rates/smollm2_135m.json). Those of a single table
(bench/data/TASK/rates.json) are for searches on the others, so that a method is scored on a task that its rates have
not seen. The tables are of one model: what the rates are worth on another model is not known from them.
"""

from pathlib import Path

from bench.emulator.emulator import FAMILIES, usable
from bench.search.play import arenas, told_of
from bench.tasks import DATA, RATES, TASKS
from qra_bo.searchers.rates.files import rates_file, save_rates
from qra_bo.searchers.rates.learning import Study, learn, study_of

SHIPPED = "smollm2_135m"


def study_of_table(folder: Path) -> tuple[str, Study]:
    """Return a table in words and what it tells; budgets bind what is proposed, not what is learned."""
    arena = arenas(folder, list(FAMILIES)[:1])[0]
    table, data = arena.oracle.table, usable(arena.oracle.table)
    told = told_of(arena.problem, data.allocations, data.targets[:, -1])
    found = study_of(arena.problem, told, arena.oracle.emulator.rate)
    if found is None:
        raise SystemExit(f"the table of {table.facts.task} holds too few losses to learn from")
    return f"{len(told)} allocations of {table.facts.task}, {table.facts.model}", found


def main() -> None:
    studies = {task: study_of_table(DATA / task) for task in sorted(TASKS)}
    files = [rates_file(SHIPPED), *(DATA / task / RATES for task in studies)]
    for path, used in zip(files, [list(studies), *([task] for task in studies)], strict=True):
        rates = learn(dict(studies[task] for task in used))
        save_rates(rates, path)
        print(f"{path}: rates {rates.slopes.round(4).tolist()}, error {rates.error:.4f} nats, factor on the learning "
              f"rate {rates.lr_scale:.3g}")


if __name__ == "__main__":
    main()
