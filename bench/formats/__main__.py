"""Train what the study of formats still wants, one trial at a time; it may be stopped and started again at any moment.

    python -m bench.formats --out FILE.jsonl
    python -m bench.formats --out FILE.jsonl --tasks plays,gsm8k --gsm8k RECORDS.jsonl --steps 24,240 --hours 8
    python -m bench.formats --out FILE.jsonl --tasks plays,gsm8k --summary

Finished trials are lines of --out; checkpoints, and the errors of formats of 4 bits on weights that were never
quantised, are kept beside it. --summary trains nothing: it writes bench/results/formats.json.
"""

import json
import sys
from collections.abc import Sequence

from bench.formats.plan import STAGES, WIDTHS, following, make_plan, overrides_of, setting_of
from bench.formats.summary import summarise
from bench.formats.untrained_weights import measure
from bench.length.command import add_file_options, add_tasks, run, study_config, study_parser, tasks_of
from bench.length.study import work
from bench.length.trials import load
from qra_bo.config import make_spec
from qra_bo.study.intervals import LEAST_SEEDS
from qra_bo.utils.files import write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = study_parser("formats", __doc__)
    add_file_options(parser)
    add_tasks(parser)
    parser.add_argument("--steps", default="24,240", help="numbers of optimiser steps")
    parser.add_argument("--formats", default="", help="train these formats alone; not given: all")
    options, overrides = parser.parse_known_args(arguments)
    tasks, steps = tasks_of(parser, options), tuple(int(part) for part in options.steps.split(","))
    only = tuple(filter(None, options.formats.split(",")))
    if unknown := sorted(set(only) - {name for names in WIDTHS.values() for name in names}):
        parser.error(f"--formats takes those of the study; got {', '.join(unknown)}")

    def job() -> None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        if options.summary:
            config = study_config("plays", None, [*overrides_of("low"), *overrides])
            kept = options.out.with_suffix(".never_quantised.json")
            if not kept.exists():
                write_json(kept, measure(LEAST_SEEDS))
            summarise(tasks, steps, options.seeds, load(options.out), config,
                      json.loads(kept.read_text(encoding="utf-8")), options.results)
            return
        configs = {f"{task}-{stage}": study_config(task, options.gsm8k, [*overrides_of(stage), *overrides])
                   for task in tasks for stage in STAGES}
        layers = make_spec(next(iter(configs.values()))).n_layers
        plan = make_plan(tasks, steps, options.seeds, layers, only)
        work(lambda found: following(plan, found), options.out, configs, options.trials, options.hours, setting_of)

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
