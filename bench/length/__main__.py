"""Train what the length study still wants, one trial at a time; it may be stopped and started again at any moment.

    python -m bench.length
    python -m bench.length --gsm8k FILE.jsonl --hours 8
    python -m bench.length --summary

Finished trials are in trials.jsonl of --out; of a trial that was interrupted a checkpoint is kept there.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.length.plan import make_plan, wanted
from bench.length.study import work
from bench.length.summary import publish
from bench.length.trials import NAME
from bench.report import RESULTS
from qra_bo.config import RunConfig, load_config
from qra_bo.pipeline.build import prepare_worker_environment
from qra_bo.study.signals import RunInterrupted
from qra_bo.utils.errors import UserError

RECORD_AT = (12, 24, 48, 72, 120, 240, 480)
"""Steps after which a trial's validation loss is recorded: its curve."""


def study_config(task: str, gsm8k: Path | None, more: Sequence[str] = ()) -> RunConfig:
    """The configuration of all trials on one text: codes by GPTQ, the ladder with 5 and 6 bits, no time limits.

    It is in fp32, whose products take half the time of bf16's on CPUs that multiply bf16 without tiles.
    """
    data = ["data=plays"] if task == "plays" else [
        "data=jsonl", f"data.path={json.dumps(str(gsm8k))}", "data.max_cut=1"]  # answers are cut at 128 tokens
    return load_config([*data, "dtype=float32", "device=cpu", "bits=[2,3,4,5,6,8]", "quantizer.rounding=gptq",
                        "worker.deadline_seconds=null", "worker.slowdown=null", *more])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.length", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "length", help="folder of trials, table and figure")
    parser.add_argument("--gsm8k", type=Path, help="JSONL file with GSM8K's training records; without it plays alone")
    parser.add_argument("--trials", type=int, help="stop after so many")
    parser.add_argument("--hours", type=float, help="start none after so long")
    parser.add_argument("--summary", action="store_true", help="only write table and figure")
    options = parser.parse_args(arguments)
    if options.summary:
        publish(options.out, study_config("plays", None), make_plan())
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    tasks = ("plays",) if options.gsm8k is None else ("plays", "gsm8k")
    prepare_worker_environment()
    try:
        work(lambda found: wanted(make_plan(), found, tasks), options.out / NAME,
             {task: study_config(task, options.gsm8k) for task in tasks}, options.trials, options.hours,
             record_at=RECORD_AT)
    except (UserError, RunInterrupted) as stop:
        print(stop, file=sys.stderr)
        return stop.exit_status
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
