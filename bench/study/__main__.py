"""Train what a plan still wants, or make its results.

    python -m bench.study bench/study/plans/length_searched.yaml --data gsm8k=RECORDS.jsonl --hours 2
    python -m bench.study PLAN.yaml --summary

Every finished trial is a line in --out, with the losses of each held-out sequence where the oracle gives them; the
command may be stopped and started again at any moment. --summary trains nothing: it prints the table and writes
NAME.json to --results.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report import RESULTS
from bench.study.plan import load_study
from bench.study.run import stores_in, work
from bench.study.summary import summarise
from qra_bo.pipeline.executors import prepare_worker_environment
from qra_bo.study.signals import RunInterrupted
from qra_bo.utils.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.study", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="YAML file")
    parser.add_argument("--data", action="append", type=_text_and_file, default=[], metavar="TEXT=FILE",
                        help="JSONL file of a text; once a text")
    parser.add_argument("--trials", type=int, help="stop after so many")
    parser.add_argument("--hours", type=float, help="start none after so long")
    parser.add_argument("--out", type=Path, help="folder of the trials; by default NAME in bench/results")
    parser.add_argument("--summary", action="store_true", help="only write the results of what is finished")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    prepare_worker_environment()
    try:
        study = load_study(options.plan, dict(options.data))
        folder: Path = options.out or RESULTS / study.plan.name
        if options.summary:
            summarise(study, stores_in(folder), options.results)
        else:
            work(study, folder, options.trials, options.hours)
    except (UserError, RunInterrupted) as stop:
        print(stop, file=sys.stderr)
        return stop.exit_status
    return 0


def _text_and_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"must be TEXT=FILE; got {text}")
    return name, Path(path)


if __name__ == "__main__":
    sys.exit(main())
