"""Train what the study of formats still wants, one trial at a time; it may be stopped and started again at any moment.

    python -m bench.formats --out FILE.jsonl
    python -m bench.formats --out FILE.jsonl --tasks plays,gsm8k --gsm8k RECORDS.jsonl --steps 24,240 --hours 8
    python -m bench.formats --out FILE.jsonl --tasks plays,gsm8k --summary

Finished trials are lines of --out; checkpoints, and the errors of formats of 4 bits on weights that were never
quantised, are kept beside it. --summary trains nothing: it writes bench/results/formats.json.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.formats.plan import STAGES, WIDTHS, following, make_plan, overrides_of, setting_of
from bench.formats.summary import summarise
from bench.formats.untrained_weights import measure
from bench.length.__main__ import study_config
from bench.length.study import work
from bench.length.trials import load
from bench.report import RESULTS
from qra_bo.config import make_spec
from qra_bo.pipeline.build import prepare_worker_environment
from qra_bo.study.intervals import LEAST_SEEDS
from qra_bo.study.signals import RunInterrupted
from qra_bo.utils.errors import UserError
from qra_bo.utils.files import write_json

TEXTS = ("plays", "gsm8k")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.formats", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of the trials")
    parser.add_argument("--tasks", default="plays", help=f"texts, of {','.join(TEXTS)}")
    parser.add_argument("--gsm8k", type=Path, help="JSONL file with GSM8K's training records")
    parser.add_argument("--steps", default="24,240", help="numbers of optimiser steps")
    parser.add_argument("--seeds", type=int, default=LEAST_SEEDS, help=f"unseen training seeds, at most {LEAST_SEEDS}")
    parser.add_argument("--formats", default="", help="only these formats; not given: all")
    parser.add_argument("--trials", type=int, help="stop after so many")
    parser.add_argument("--hours", type=float, help="start none after so long")
    parser.add_argument("--summary", action="store_true", help="only write the results of what is finished")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options, overrides = parser.parse_known_args(arguments)
    tasks, steps = tuple(options.tasks.split(",")), tuple(int(part) for part in options.steps.split(","))
    if unknown := sorted(set(tasks) - set(TEXTS)):
        parser.error(f"--tasks takes {' and '.join(TEXTS)}; got {', '.join(unknown)}")
    if not 1 <= options.seeds <= LEAST_SEEDS:
        parser.error(f"--seeds takes 1 to {LEAST_SEEDS}; got {options.seeds}")
    if "gsm8k" in tasks and options.gsm8k is None and not options.summary:
        parser.error("--tasks gsm8k needs --gsm8k, the JSONL file of its records")
    only = tuple(filter(None, options.formats.split(",")))
    if unknown := sorted(set(only) - {name for names in WIDTHS.values() for name in names}):
        parser.error(f"--formats takes those of the study; got {', '.join(unknown)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    prepare_worker_environment()
    try:
        if options.summary:
            config = study_config("plays", None, [*overrides_of("low"), *overrides])
            kept = options.out.with_suffix(".never_quantised.json")
            if not kept.exists():
                write_json(kept, measure(LEAST_SEEDS))
            summarise(tasks, steps, options.seeds, load(options.out), config,
                      json.loads(kept.read_text(encoding="utf-8")), options.results)
            return 0
        configs = {f"{task}-{stage}": study_config(task, options.gsm8k, [*overrides_of(stage), *overrides])
                   for task in tasks for stage in STAGES}
        layers = make_spec(next(iter(configs.values()))).n_layers
        plan = make_plan(tasks, steps, options.seeds, layers, only)
        work(lambda found: following(plan, found), options.out, configs, options.trials, options.hours, setting_of)
    except (UserError, RunInterrupted) as stop:
        print(stop, file=sys.stderr)
        return stop.exit_status
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
