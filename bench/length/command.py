"""What the commands of the studies share: their options, the configuration of their trials, and how they end."""

import json
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.length.plan import FORMATS
from bench.report import RESULTS
from qra_bo.config import RunConfig, load_config
from qra_bo.pipeline.build import prepare_worker_environment
from qra_bo.study.intervals import LEAST_SEEDS
from qra_bo.study.signals import RunInterrupted
from qra_bo.utils.errors import UserError

TEXTS = ("plays", "gsm8k")


def text_overrides(task: str, gsm8k: Path | None) -> list[str]:
    """Return the overrides that choose a text; GSM8K's records are in a JSONL file of the user's."""
    return ["data=plays"] if task == "plays" else [
        "data=jsonl", f"data.path={json.dumps(str(gsm8k))}", "data.max_cut=1"]  # answers are cut at 128 tokens


def study_config(task: str, gsm8k: Path | None, more: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of all trials on one text: codes by GPTQ, the ladder with 5 and 6 bits, no time limits,
    and factors on one learning rate at all lengths."""
    return load_config([*text_overrides(task, gsm8k), "dtype=float32", "device=cpu", "bits=[2,3,4,5,6,8]",
                        "quantizer.rounding=gptq", "adapter.lr_rule=inverse_sqrt",
                        *(f"quantizer.formats.{bits}=[{name}]" for bits, name in FORMATS.items()),
                        "worker.deadline_seconds=null", "worker.slowdown=null", *more])


def study_parser(program: str, description: str | None) -> ArgumentParser:
    """Return a parser with the options that every study has."""
    parser = ArgumentParser(prog=f"python -m bench.{program}", description=description,
                            formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, help="JSONL file with GSM8K's training records")
    parser.add_argument("--trials", type=int, help="stop after so many")
    parser.add_argument("--hours", type=float, help="start none after so long")
    parser.add_argument("--summary", action="store_true", help="only write the results of what is finished")
    return parser


def add_folders(parser: ArgumentParser, out: Path) -> None:
    """Add the options of a study that keeps its trials, and its results, in folders of the project."""
    parser.add_argument("--out", type=Path, default=out, help="folder of the trials")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")


def add_tasks(parser: ArgumentParser) -> None:
    """Add the option that chooses texts; ``tasks_of`` reads it."""
    parser.add_argument("--tasks", default=TEXTS[0], help=f"texts, of {','.join(TEXTS)}")


def tasks_of(parser: ArgumentParser, options: Namespace) -> tuple[str, ...]:
    """Return the texts that ``options`` choose; what is unknown, or lacks its file, ends the command."""
    tasks = tuple(options.tasks.split(","))
    if unknown := sorted(set(tasks) - set(TEXTS)):
        parser.error(f"--tasks takes {' and '.join(TEXTS)}; got {', '.join(unknown)}")
    if "gsm8k" in tasks and options.gsm8k is None and not options.summary:
        parser.error("--tasks gsm8k needs --gsm8k, the JSONL file of its records")
    return tasks


def add_file_options(parser: ArgumentParser) -> None:
    """Add the options of a study that keeps its trials in a file of the user's and its results apart."""
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of the trials")
    parser.add_argument("--seeds", type=int, choices=range(1, LEAST_SEEDS + 1), default=LEAST_SEEDS,
                        help="unseen training seeds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")


def run(job: Callable[[], None]) -> int:
    """Do the work of a command and return its exit status; errors of the user's are one message."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    prepare_worker_environment()
    try:
        job()
    except (UserError, RunInterrupted) as stop:
        print(stop, file=sys.stderr)
        return stop.exit_status
    return 0
