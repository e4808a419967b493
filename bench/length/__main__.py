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
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from bench.length.plan import Block, make_plan, wanted
from bench.length.summary import publish
from bench.length.trials import NAME, PlannedTrial, append, load, to_event
from bench.report import RESULTS, machine
from qra_bo.config import RunConfig, load_config
from qra_bo.execution.base import Executor, OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.pipeline.build import limits, prepare_worker_environment
from qra_bo.study.journal import RunLock
from qra_bo.study.provenance import collect
from qra_bo.study.signals import Interrupts, RunInterrupted
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import UserError, WorkerError

RECORD_AT = (12, 24, 48, 72, 120, 240, 480)
"""Steps after which a trial's validation loss is recorded: its curve."""


def study_config(task: str, gsm8k: Path | None, more: Sequence[str] = ()) -> RunConfig:
    """The configuration of all trials on one text: codes by GPTQ, the ladder with 5 and 6 bits, no time limits."""
    data = ["data=plays"] if task == "plays" else [
        "data=jsonl", f"data.path={json.dumps(str(gsm8k))}", "data.max_cut=1"]  # answers are cut at 128 tokens
    return load_config([*data, "dtype=bfloat16", "device=cpu", "bits=[2,3,4,5,6,8]", "quantizer.rounding=gptq",
                        "worker.deadline_seconds=null", "worker.slowdown=null", *more])


class Study:
    """Trials of all texts, with one worker process for the text at work.

    Args:
        folder: Of the trials.
        configs: Configuration of every text that can be trained on.
    """

    def __init__(self, folder: Path, configs: dict[str, RunConfig]) -> None:
        self.folder, self.configs = folder, configs
        self._task, self._session = "", ""
        self._executor: Executor | None = None

    def run(self, trial: PlannedTrial, name: str) -> TrialResult:
        """Train, evaluate and append one trial."""
        executor = self._open(trial.task)
        spec = TrialSpec(trial.allocation, trial.steps, trial.steps, trial.train_seed, trial.split, trial.lr_scale,
                         codes=trial.codes)
        result = executor.evaluate(spec, lambda what, done, total: None)
        event = to_event(trial, name, {
            "state": result.state.value, "loss": result.loss, "loss_se": result.loss_se,
            "curve": [list(point) for point in result.curve], "training_tokens": result.training_tokens,
            "seconds": round(result.seconds, 1), "message": result.message}, self._session)
        append(self.folder / NAME, event | {"time": _now()})
        return result

    def close(self) -> None:
        """End the worker process; it keeps its trial as a checkpoint first."""
        if self._executor is not None:
            self._executor.close()

    def _open(self, task: str) -> Executor:
        if self._executor is None or task != self._task:
            self.close()
            out = self.folder / f"work-{task}"
            out.mkdir(exist_ok=True)
            config = self.configs[task]
            self._executor, self._task = LocalExecutor([OracleSpec("bench.collect.worker:make_oracle", {
                "config": config.to_dict(), "out": str(out), "record_at": list(RECORD_AT)})], limits(config)), task
            self._session = _now()
            append(self.folder / NAME, {"event": "session", "session": self._session, "task": task,
                                        "machine": machine(), **collect(self._executor.describe())})
        return self._executor


def work(plan: Sequence[Block], folder: Path, configs: dict[str, RunConfig], most: int | None = None,
         hours: float | None = None) -> None:
    """Run trials until the plan wants none, or enough was done.

    Raises:
        WorkerError: If a trial was lost with its worker; it is tried again next time.
    """
    start, done = time.monotonic(), 0
    with ExitStack() as stack:
        study = Study(folder, configs)
        stack.callback(study.close)
        while (most is None or done < most) and (hours is None or time.monotonic() - start < 3600 * hours):
            found = load(folder / NAME)
            following = wanted(plan, found, configs)
            if following is None:
                print("nothing is missing")
                return
            trial, name = following
            print(f"{_now()} trial {len(found) + 1}: {trial.task}, {trial.steps} steps, {name}, {trial.split}, rate x "
                  f"{trial.lr_scale:g}, seed {trial.train_seed}", flush=True)
            result, done = study.run(trial, name), done + 1
            print(f"  {result.state}, loss {result.loss}, {result.seconds:.0f} s {result.message}", flush=True)
            if result.state is TrialState.FAILED:
                raise WorkerError(f"the trial was lost with its worker: {result.message}; run the same command again")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


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
        with Interrupts(), RunLock(options.out):
            work(make_plan(), options.out, {task: study_config(task, options.gsm8k) for task in tasks},
                 options.trials, options.hours)
    except (UserError, RunInterrupted) as stop:
        print(stop, file=sys.stderr)
        return stop.exit_status
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
