"""Every system call that writes, failing once in whole runs: the planted oracle's, and real ones of ``tiny``.

Calls on files of the run, the cache and the temporary folder are listed by an undisturbed run. The first, middle and
last call of every kind on every kind of file fails with ENOSPC, EACCES and EIO, in a run of its own: all nine in runs
of the planted oracle, each call with one of the errors in real ones. That has to end with the undisturbed run's
results, or with status 2 and one message, and with these results when it is repeated.
"""

import contextlib
import copy
import errno
import functools
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from matplotlib.figure import Figure
from omegaconf import OmegaConf

from bench.faults.failing_calls import Failure, Supervisor, unavailable
from bench.faults.kinds import PLANTED
from bench.faults.log import Session
from bench.faults.runs import OVERRIDES, Ended, RunProcess, keys, result, warm_up
from qra_bo.study.journal import JOURNAL_NAME, read_journal
from qra_bo.study.status import read_state
from tests.faults.real import in_this_process

ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO)
ORACLES = {"planted": PLANTED,
           "real": ("effort.max_full_trials=3", "method=random", "bits=[4,8]", "fidelity.high=2", "fidelity.low=1",
                    "eval.sequences=2", "model.n_layers=2", "calibrate.lr_scales=[1.0]", "confirm.seeds=0",
                    "quantizer.rounding=gptq", "quantizer.tokens=256", "train.batch=1", "train.length=16")}
"""Overrides beyond those of all runs: as few layers, steps and trials as leave no file out."""
WATCHED = ("run", "cache", "tmp")
"""Folders of a run whose files count."""
SHORT_SECONDS = 20.0
"""Time for the cases of the short form."""
TIMES = ("status.json", "report.html", "report.json", "plots", "best.json", JOURNAL_NAME, ".lock")
"""Files of a run that hold times; of the journal and of ``best.json`` the rest is compared."""
COMPARED = ("key", "bits", "ranks", "stage", "state", "loss", "loss_se", "curve", "new_steps", "training_tokens",
            "forward_tokens")
"""Fields of a trial that are the same in any two runs."""
WITHOUT = ("checkpoints/", "status.json", "export/checks.json")
"""Files that a run may end well without, as it says in a warning: no result depends on them."""
RECORD, CHECKED = "export/made_from.json", "checks.json"
"""What names the exports that were made, and its entry of their check, which a run may end well without."""


@dataclass(frozen=True)
class Case:
    """One failing call in one run."""

    oracle: str
    where: str
    failure: Failure

    def __str__(self) -> str:
        site = self.failure.site
        return f"{self.oracle}: {self.where} {site.call} of {site.file}: {errno.errorcode[self.failure.error]}"


def numbers(count: int) -> dict[int, str]:
    """First, middle and last of ``count`` calls, counted from 1, with their names."""
    return {1: "only"} if count == 1 else {(count + 1) // 2: "middle", 1: "first", count: "last"}


class Runs:
    """Runs of one oracle, each in a folder of its own with a cache and a folder for temporary files.

    Args:
        oracle: One of ``ORACLES``.
        folder: For all of them.
    """

    def __init__(self, oracle: str, folder: Path) -> None:
        self.oracle, self._folder = oracle, folder
        self._plain = folder / f"{oracle}-undisturbed"
        ended, supervisor = self._run(self._plain)
        if ended.status != 0:
            raise RuntimeError(f"the undisturbed run ended with {ended.status}: {ended.output}")
        self.sites = supervisor.seen
        self._results, self._files = _results(self._plain / "run"), _files(self._plain)

    def cases(self) -> Iterator[Case]:
        """Every case of the calls that the undisturbed run made; of a real run, which takes longer, one call a site for
        each error: the first, the middle or the last one."""
        for site, count in sorted(self.sites.items()):
            tried = numbers(count)
            for i, error in enumerate(ERRORS):
                for number in sorted(tried) if self.oracle == "planted" else [sorted(tried)[i % len(tried)]]:
                    yield Case(self.oracle, tried[number], Failure(site, number, error))

    def problem_of(self, case: Case) -> str:
        """What was wrong with a run in which a call failed, or with its repetition; empty where nothing was."""
        parent = Path(tempfile.mkdtemp(prefix=f"{self.oracle}-", dir=self._folder))
        try:
            problem = self._problem_of(case, parent)
        except Exception as error:  # whatever a broken run leaves behind is told with it
            problem = f"{type(error).__name__}: {error}"
        if not problem:
            shutil.rmtree(parent)
        return problem and f"{problem} [{parent}]"

    def _problem_of(self, case: Case, parent: Path) -> str:
        ended, supervisor = self._run(parent, case.failure)
        if not supervisor.hit and supervisor.seen[case.failure.site]:  # writes of progress depend on the time
            shutil.rmtree(parent)
            last = Failure(case.failure.site, supervisor.seen[case.failure.site], case.failure.error)
            ended, supervisor = self._run(parent, last)
        if not supervisor.hit:
            return "the call was not made"
        if "Traceback" in ended.output or "Exception ignored" in ended.output:
            return f"a traceback: {ended.output[-2000:]}"
        before = keys(parent / "run")
        if ended.status != 0:
            messages = [line for line in ended.output.splitlines() if line.startswith("qra_bo: ")]
            if ended.status != 2 or len(messages) != 1 or os.strerror(case.failure.error) not in messages[0]:
                return f"ended with {ended.status}: {ended.output[-600:]}"
            ended, _ = self._run(parent)
            if ended.status != 0 or "Traceback" in ended.output:
                return f"repeated, it ended with {ended.status}: {ended.output[-600:]}"
        after = keys(parent / "run")
        if after[:len(before)] != before or len(set(after)) < len(after):
            return "trials were lost or repeated"
        found = _results(parent / "run")
        different = sorted(name for name in self._results if name in found and found[name] != self._results[name])
        if different:
            return f"results differ: {different}"
        state = read_state(parent / "run")
        if state != "done" and "status.json can't be written" not in ended.output:
            return f"status.json says {state!r}"
        return self._problem_of_files(parent, case, supervisor.hit, ended.output)

    def _problem_of_files(self, parent: Path, case: Case, hit: str, output: str) -> str:
        files = _files(parent)
        missing = sorted(f for f in self._files - files if f.startswith("run/")
                         and not (f.removeprefix("run/").startswith(WITHOUT) and "WARNING" in output))
        if missing:
            return f"missing: {missing}: {output[-300:]}"
        # a file that could not be removed is still there
        more = sorted(f for f in files - self._files
                      if not (case.failure.site.call.startswith("unlink") and str(parent / f) == hit))
        return f"left behind: {more}" if more else ""

    def _run(self, parent: Path, failure: Failure | None = None) -> tuple[Ended, Supervisor]:
        """A run in ``parent``/run with a call that fails."""
        (parent / "tmp").mkdir(parents=True, exist_ok=True)
        watched = Supervisor([parent / name for name in WATCHED], failure)

        def prepare() -> None:
            os.environ |= {"QRA_BO_CACHE": str(parent / "cache"), "TMPDIR": str(parent / "tmp")}
            tempfile.tempdir = None
            watched.connect()

        process = RunProcess(parent / "run", ORACLES[self.oracle], prepare)
        watched.start()
        try:
            return process.wait(), watched
        finally:
            watched.finish()


def _files(parent: Path) -> set[str]:
    """The files of run, cache and temporary folder; what marks a cached key as this run's is named by its folder."""
    found = (p.relative_to(parent) for name in WATCHED for p in (parent / name).rglob("*") if p.is_file())
    return {str(p.with_name("of_this_run") if p.suffix == ".run" else p) for p in found}


def _results(run: Path) -> dict[str, Any]:
    """What a run came to: its trials, ``best.json``, and every file that holds no times."""
    events = read_journal(run / JOURNAL_NAME).events
    trials = [[e[name] for name in COMPARED] for e in events if e["event"] == "trial"]
    found: dict[str, Any] = {"trials": trials, "best": result(run)}
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if path.is_file() and not name.startswith((*TIMES, "checkpoints")):
            raw = path.read_bytes().replace(os.fsencode(run), b"RUN")
            found[name] = _tensors(raw) if path.suffix == ".safetensors" else raw
    if RECORD in found:
        found[RECORD] = {name: adapter for name, adapter in json.loads(found[RECORD]).items() if name != CHECKED}
    return found


def _tensors(raw: bytes) -> tuple[Any, bytes]:
    """Header and data of a safetensors file, whose metadata have no order."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


@functools.cache
def _parsed(name: str, load: Callable[[str], Any] = OmegaConf.load) -> Any:
    return load(name)


def _loaded_once(file: Any) -> Any:
    """The contents of a configuration file, parsed once for all runs: that takes a third of a run."""
    return copy.deepcopy(_parsed(file.name))


def _warm_up(folder: Path) -> None:
    """Import and use once, in this process, all that runs need. The page of a report and
    its one figure are written without being drawn, which takes as long as the rest."""
    warm_up(report=True)
    from qra_bo.cli.app import main
    from qra_bo.report import html, plots
    from qra_bo.study import provenance

    provenance.git_commit = lambda folder: None  # it may change meanwhile
    OmegaConf.load = _loaded_once  # type: ignore[method-assign]
    html.render_html = lambda d, figures: "a page"
    html.drawn = lambda plots, of: {"memory": Figure()}
    plots.png_bytes = lambda figure: b"a figure"
    for oracle, overrides in ORACLES.items():
        printed = io.StringIO()
        with mock.patch("qra_bo.pipeline.run.make_executor", in_this_process), \
                mock.patch.dict(os.environ, {"QRA_BO_CACHE": str(folder / "cache")}), \
                contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = main([*OVERRIDES, *overrides, f"out={folder / oracle}"])
        if status:
            raise RuntimeError(printed.getvalue())


def provoke(session: Session) -> bool:
    """Let calls fail and return whether every case ended well, or none could be tried."""
    why = unavailable()
    if why:
        print(f"The sweep of system calls is not run: {why}.")
        return True
    with tempfile.TemporaryDirectory() as warm:
        _warm_up(Path(warm))
    if session.short:
        session = replace(session, end=time.monotonic() + SHORT_SECONDS)
    runs = [Runs(oracle, session.folder) for oracle in ORACLES]
    return session.sweep(
        "fault_syscalls", "system calls failing once after which results were as undisturbed, at once or after one "
        "message and the same command", [
            (str(case), {"oracle": case.oracle, "call": case.failure.site.call,
                         "error": errno.errorcode[case.failure.error]}, partial(of.problem_of, case))
            for of in runs for case in of.cases()])
