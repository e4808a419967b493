"""Training of a study's missing trials, one at a time, in a worker process for the setting at work."""

import hashlib
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from bench.store import TrialStore
from bench.study.plan import Arm, Study
from bench.study.schedule import Find, Planned, missing
from qra_bo.execution.base import Executor, OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.pipeline.executors import limits
from qra_bo.study.journal import run_lock
from qra_bo.study.signals import Interrupts
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import WorkerError

Open = Callable[[Study, Arm, Path], Executor]


def worker(study: Study, arm: Arm, folder: Path) -> Executor:
    """Return a worker process for the setting of ``arm``; checkpoints are kept in ``folder``."""
    config = study.config(arm)
    return LocalExecutor([OracleSpec("bench.study.worker:make_oracle", {
        "config": config.to_dict(), "out": str(folder)})], limits(config))


def finder(stores: Iterable[TrialStore]) -> Find:
    """Return what looks a finished trial up in several stores."""
    def find(setting: str, spec: TrialSpec) -> TrialResult | None:
        return next((found for store in stores if (found := store.result(setting, spec)) is not None), None)
    return find


def stores_in(folder: Path) -> list[TrialStore]:
    """Return the stores of all machines in a study's folder."""
    return [TrialStore(path) for path in sorted(folder.glob("*.jsonl"))]


def work(study: Study, folder: Path, most: int | None = None, hours: float | None = None,
         open_executor: Open = worker) -> None:
    """Run trials until none is missing, or enough was done; a folder has one process at a time.

    Args:
        study: Whose trials.
        folder: Of its trials.
        most: Most trials.
        hours: Time after which no trial is started.
        open_executor: Returns the executor of an arm's setting.

    Raises:
        WorkerError: If a trial was lost with its worker; it is tried again next time.
    """
    own = folder / "work"
    own.mkdir(parents=True, exist_ok=True)
    start, done, setting = time.monotonic(), 0, ""
    executor: Executor | None = None
    store = TrialStore(folder / "trials.jsonl")
    with Interrupts(), run_lock(own), ExitStack() as stack:
        stack.callback(lambda: executor and executor.close())
        while (most is None or done < most) and (hours is None or time.monotonic() - start < 3600 * hours):
            wanted = list(missing(study.comparisons, finder([store, *stores_in(folder)])))
            if not wanted:
                print("nothing is missing")
                return
            planned = next((p for p in wanted if p.arm.setting == setting), wanted[0])
            if planned.arm.setting != setting:  # a worker holds one base model and its packed layers
                if executor is not None:
                    executor.close()
                setting = planned.arm.setting
                # Checkpoints are named by allocation, seed and rate: another setting's is not to be continued.
                kept = own / hashlib.sha256(setting.encode()).hexdigest()[:16]
                kept.mkdir(exist_ok=True)
                executor = open_executor(study, planned.arm, kept)
                store.begin(setting, executor.describe())
            assert executor is not None
            print(f"{datetime.now():%H:%M} {len(wanted)} missing: {_title(planned)}", flush=True)
            result = executor.evaluate(planned.spec, lambda what, completed, total: None)
            store.add(setting, planned.spec, result, name=planned.arm.name)
            done += 1
            print(f"  {result.state}, loss {result.loss}, {result.seconds:.0f} s {result.message}", flush=True)
            if result.state is TrialState.FAILED:
                raise WorkerError(f"the trial was lost with its worker: {result.message}; run the same command again")


def _title(planned: Planned) -> str:
    arm, spec = planned.arm, planned.spec
    return (f"{arm.comparison.text}, {arm.steps} steps, {arm.name}, {spec.split}, rate {spec.learning_rate:g}, "
            f"seed {spec.train_seed}")
