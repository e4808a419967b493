"""Learn exchange rates of bits and ranks from finished runs: ``python -m qra_bo.rates RUN ... --out rates.json``.

A later run takes the file with ``surrogate.rates=rates.json``. Runs may be of other models, tasks and budgets.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qra_bo.config import config_from_dict, make_space, make_spec
from qra_bo.config.presets import suggested_rate
from qra_bo.pipeline.pricing import make_memory
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.rates.files import save_rates
from qra_bo.searchers.rates.learning import LEAST_LOSSES, Study, learn, study_of
from qra_bo.searchers.rates.model import NAMES
from qra_bo.study import load_study
from qra_bo.utils.errors import ConfigError, ModelError, OutputError, UserError
from qra_bo.utils.files import COPY_AGAIN, writing
from qra_bo.utils.process import prepare


def study_of_run(folder: Path) -> Study | None:
    """Return what a run's trials tell; ``None`` where they are too few.

    The code that a model may come with is never run: a run's folder is data. Raises ``UserError`` if it is not the
    folder of a run.
    """
    study = load_study(folder)
    if study.profile is None:
        return None
    try:
        config = config_from_dict(study.header.config)
        spec = make_spec(config.with_changes(model={**config.model, "trust_remote_code": False}))
    except ConfigError as error:
        raise OutputError(f"the journal of {folder} describes its run badly ({error}); {COPY_AGAIN}") from error
    except ModelError as error:
        if not config.model["trust_remote_code"]:
            raise
        raise ModelError(f"{folder} is of a model with code of its own ({config.model['path']!r}), which is never run "
                         "to learn rates; leave it out") from error
    space = make_space(config, spec)
    problem = SearchProblem(space, make_memory(config, spec, "cpu").table(space), study.header.budget_bytes,
                            study.profile.profile, config.fidelity.high, None,
                            config.seed, step_tokens=config.train.step_tokens)
    factor = (study.learning_rate or config.adapter.lr) / suggested_rate(config)  # trainers have their own rates
    return study_of(problem, study.points, factor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m qra_bo.rates", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="file of the rates")
    options = parser.parse_args(arguments)
    try:
        found = {run: study_of_run(run) for run in options.runs}
        used = {run: study for run, study in found.items() if study is not None}
        for run in (r for r in found if r not in used):
            print(f"{run} is left out: it has fewer than {LEAST_LOSSES} losses to learn from", file=sys.stderr)
        if not used:
            raise OutputError(f"no run has {LEAST_LOSSES} losses to learn from, so no rates were written; give "
                              "longer runs")
        named = Counter(run.name for run in used)  # sweeps number their folders alike
        rates = learn({run.name if named[run.name] == 1 else str(run): study for run, study in used.items()})
        with writing(options.out, "learn the rates again"):
            save_rates(rates, options.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    for name, slope, variance in zip(NAMES, rates.slopes, rates.covariance.diagonal(), strict=True):
        print(f"rate of {name}: {slope:.3g} nats (standard deviation {variance**0.5:.2g})")
    return 0


if __name__ == "__main__":
    prepare()
    sys.exit(main())
