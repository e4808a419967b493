"""Learn a prior of the default's surrogate from finished runs: ``python -m qra_bo.prior RUN ... --out prior.json``.

A later run uses it with ``surrogate.prior=prior.json``. Runs may be of other models, tasks and budgets.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qra_bo.config import config_from_dict, make_space, make_spec
from qra_bo.execution.base import ProfileResult
from qra_bo.pipeline.build import make_memory
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured.transfer import LEAST_LOSSES, combine, fitted_scales, save_prior
from qra_bo.study import as_observation, load_study
from qra_bo.utils.errors import ConfigError, ModelError, OutputError, UserError
from qra_bo.utils.files import COPY_AGAIN, writing
from qra_bo.utils.process import prepare


def scales_of_run(folder: Path) -> dict[str, float] | None:
    """Return the scale of every part as fitted to a run's trials; ``None`` where they are too few.

    The code that a model may come with is never run: a run's folder is data. Raises ``UserError`` if it is not the
    folder of a run.
    """
    study = load_study(folder)
    if "profile" not in study.last:
        return None
    try:
        config = config_from_dict(study.header["config"])
        spec = make_spec(config.with_changes(model={**config.model, "trust_remote_code": False}))
    except ConfigError as error:
        raise OutputError(f"the journal of {folder} describes its run badly ({error}); {COPY_AGAIN}") from error
    except ModelError as error:
        if not config.model["trust_remote_code"]:
            raise
        raise ModelError(f"{folder} is of a model with code of its own ({config.model['path']!r}), which is never run "
                         "to learn a prior; leave it out") from error
    space = make_space(config, spec)
    problem = SearchProblem(space, make_memory(config, spec, "cpu").table(space), study.budget_bytes,
                            ProfileResult.from_json(study.last["profile"]).profile, config.fidelity.high, None,
                            config.seed)
    return fitted_scales(problem, [as_observation(e) for e in study.points])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m qra_bo.prior", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="file of the prior")
    options = parser.parse_args(arguments)
    try:
        found = {run: scales_of_run(run) for run in options.runs}
        used = {run: scales for run, scales in found.items() if scales is not None}
        for run in found.keys() - used.keys():
            print(f"{run} is left out: it has fewer than {LEAST_LOSSES} losses to learn from", file=sys.stderr)
        if not used:
            raise OutputError(f"no run has {LEAST_LOSSES} losses to learn from, so no prior was written; give longer "
                              "runs")
        prior = combine(list(used.values()))
        with writing(options.out, "learn the prior again"):
            save_prior(prior, [run.name for run in used], options.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    for name, part in prior.items():
        print(f"{name}: {part.scale:.3g} (spread {part.spread:.2f})")
    return 0


if __name__ == "__main__":
    prepare()
    sys.exit(main())
