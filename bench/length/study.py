"""What trains the trials of a plan in a worker process and appends each to a file."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from bench.length.trials import Found, PlannedTrial, append, load, to_event
from bench.report import machine
from qra_bo.config import RunConfig
from qra_bo.execution.base import Executor, OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.pipeline.build import limits
from qra_bo.study.journal import RunLock
from qra_bo.study.provenance import collect
from qra_bo.study.signals import Interrupts
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import WorkerError


def text_of(trial: PlannedTrial) -> str:
    """The setting of a trial where every text has one configuration."""
    return trial.task


class Study:
    """Trials of all settings, with one worker process for the setting at work.

    Args:
        path: File of the trials; checkpoints are kept beside it.
        configs: Configuration of every setting.
        setting_of: Returns the setting of a trial.
        record_at: Steps after which a trial's validation loss is recorded.
        changed: Function ``"package.module:function"`` that a setting's new worker calls with its oracle, by setting.
    """

    def __init__(self, path: Path, configs: Mapping[str, RunConfig], setting_of: Callable[[PlannedTrial], str],
                 record_at: Sequence[int], changed: Mapping[str, str]) -> None:
        self.path, self.configs, self.setting_of, self.record_at = path, configs, setting_of, record_at
        self._changed = changed
        self._setting, self._session = "", ""
        self._executor: Executor | None = None

    def run(self, trial: PlannedTrial, name: str) -> TrialResult:
        """Train, evaluate and append one trial."""
        executor = self.open(self.setting_of(trial))
        spec = TrialSpec(trial.allocation, trial.steps, trial.steps, trial.train_seed, trial.split, trial.lr_scale,
                         codes=trial.codes)
        result = executor.evaluate(spec, lambda what, done, total: None)
        event = to_event(trial, name, {
            "state": result.state.value, "loss": result.loss, "loss_se": result.loss_se,
            "curve": [list(point) for point in result.curve], "training_tokens": result.training_tokens,
            "measured_bytes": result.measured_bytes,
            "seconds": round(result.seconds, 1), "message": result.message}, self._session)
        append(self.path, event | {"time": _now()})
        return result

    def close(self) -> None:
        """End the worker process; it keeps its trial as a checkpoint first."""
        if self._executor is not None:
            self._executor.close()

    def open(self, setting: str) -> Executor:
        """Return the executor of a setting; the worker process of another one is ended."""
        if self._executor is None or setting != self._setting:
            self.close()
            out = self.path.parent / f"work-{setting}"
            out.mkdir(exist_ok=True)
            config = self.configs[setting]
            self._setting = setting
            self._executor = LocalExecutor([OracleSpec("bench.collect.worker:make_oracle", {
                "config": config.to_dict(), "out": str(out), "record_at": list(self.record_at)})], limits(config))
            if setting in self._changed:
                self._executor.call(self._changed[setting], {}, lambda what, done, total: None)
            self._session = _now()
            append(self.path, {"event": "session", "session": self._session, "setting": setting,
                               "machine": machine(), **collect(self._executor.describe())})
        return self._executor


def work(following: Callable[[Found], tuple[PlannedTrial, str] | None], path: Path, configs: Mapping[str, RunConfig],
         most: int | None = None, hours: float | None = None,
         setting_of: Callable[[PlannedTrial], str] = text_of, record_at: Sequence[int] = (),
         changed: Mapping[str, str] | None = None, first: Callable[[Study], None] | None = None) -> None:
    """Run trials until none is wanted, or enough was done; one process at a time in the folder of ``path``.

    Args:
        following: Returns the trial to run next, with its title, after those that are finished.
        path: File of the trials.
        configs: Configuration of every setting.
        most: Most trials.
        hours: Time after which no trial is started.
        setting_of: Returns the setting of a trial.
        record_at: Steps after which a trial's validation loss is recorded, besides the last.
        changed: See ``Study``.
        first: Called before the first trial.

    Raises:
        WorkerError: If a trial was lost with its worker; it is tried again next time.
    """
    start, done = time.monotonic(), 0
    with Interrupts(), RunLock(path.parent), ExitStack() as stack:
        study = Study(path, configs, setting_of, record_at, changed or {})
        stack.callback(study.close)
        if first is not None:
            first(study)
        while (most is None or done < most) and (hours is None or time.monotonic() - start < 3600 * hours):
            found = load(path)
            planned = following(found)
            if planned is None:
                print("nothing is missing")
                return
            trial, name = planned
            print(f"{_now()} trial {len(found) + 1}: {trial.task}, {trial.steps} steps, {name}, {trial.split}, rate x "
                  f"{trial.lr_scale:g}, seed {trial.train_seed}", flush=True)
            result, done = study.run(trial, name), done + 1
            print(f"  {result.state}, loss {result.loss}, {result.seconds:.0f} s {result.message}", flush=True)
            if result.state is TrialState.FAILED:
                raise WorkerError(f"the trial was lost with its worker: {result.message}; run the same command again")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
