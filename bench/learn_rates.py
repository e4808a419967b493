"""Learn exchange rates of bits and ranks, from the tables of real trials or from finished runs.

    python -m bench.learn_rates                        # the package's, and those of each table alone
    python -m bench.learn_rates RUN ... --out FILE     # of runs, for surrogate.rates=FILE

The package's are learned from all tables (qra_bo/searchers/rates/smollm2_135m.json). Those of a single table
(bench/data/TASK/rates.json) are for searches on the others, so that a method is scored on a task that its rates have
not seen. The tables are of one model: what the rates are worth on another model is not known from them. Runs may be of
other models, texts and budgets; no measurement shows yet what rates learned from a run gain.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from bench.emulator.emulator import FAMILIES, usable
from bench.rates import LEAST_LOSSES, Study, learn, save_rates, study_of
from bench.search.play import arenas, told_of
from bench.tasks import DATA, RATES, TASKS
from qra_bo.config import RunConfig, config_from_dict, make_space, make_spec
from qra_bo.config.overrides import CONF
from qra_bo.config.presets import with_learning_rate
from qra_bo.pipeline.pricing import make_memory
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.rates.model import rates_file
from qra_bo.study.lines import begun_study
from qra_bo.utils.errors import JournalError

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


def study_of_run(folder: Path) -> Study | None:
    """Return what a run's trials tell; ``None`` where they are too few. The code that a model may come with is never
    run: a run's folder is data. Raises ``UserError`` if it is not the folder of a run."""
    if (study := begun_study(folder)) is None:
        raise JournalError(f"{folder} holds no journal, or an empty one; give the folder of a run")
    if study.profile is None:
        return None
    config = config_from_dict(study.header.config)
    spec = make_spec(config.with_changes(model={**config.model, "trust_remote_code": False}))
    space = make_space(config, spec)
    problem = SearchProblem(space, make_memory(config, spec, "cpu").table(space), study.header.budget_bytes,
                            study.profile.profile, config.fidelity.high, None, config.seed,
                            step_tokens=config.train.step_tokens)
    factor = (study.learning_rate or config.adapter.lr) / suggested_rate(config)  # trainers have their own rates
    return study_of(problem, study.points, factor)


def suggested_rate(config: RunConfig) -> float:
    """Return the base learning rate that the run's trainer has for its model; ``adapter.lr`` with a trainer of the
    user's own."""
    path = CONF / "train" / f"{config.train.name}.yaml"
    if not path.is_file():
        return config.adapter.lr
    rate = OmegaConf.select(OmegaConf.load(path), "adapter.lr")
    return float(with_learning_rate({**config.to_dict(), "adapter": {"lr": rate}})["adapter"]["lr"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, help="file of their rates")
    given = parser.parse_args(arguments)
    if bool(given.runs) != (given.out is not None):
        raise SystemExit("runs and --out need each other")
    if given.out is not None:
        found = {str(run): study for run in given.runs if (study := study_of_run(run)) is not None}
        if not found:
            raise SystemExit(f"no run has {LEAST_LOSSES} losses to learn from; give longer runs")
        write(given.out, found)
        return
    studies = dict(study_of_table(DATA / task) for task in sorted(TASKS))
    write(rates_file(SHIPPED), studies)
    for task, (name, study) in zip(sorted(TASKS), studies.items(), strict=True):
        write(DATA / task / RATES, {name: study})


def write(path: Path, studies: dict[str, Study]) -> None:
    """Learn from studies, and write the rates."""
    rates = learn(studies)
    save_rates(rates, path)
    print(f"{path}: rates {rates.slopes.round(4).tolist()}, error {rates.error:.4f} nats, factor on the learning rate "
          f"{rates.lr_scale:.3g}")


if __name__ == "__main__":
    main()
