"""Runs that are killed, signalled or stopped and continued, or whose workers die, at random moments."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.fault_log import Tries
from bench.fault_runs import HANG_SIGNAL, Ended, RunProcess, adapter, journal_lines, keys, result
from qra_bo.study.journal import JOURNAL_NAME

KILL, TERM, INT, WORKER, HANG = ("SIGKILL of the run", "SIGTERM", "Ctrl-C", "SIGKILL of the worker",
                                 "a worker that hangs")
HUP, USR1, STOP = "SIGHUP", "SIGUSR1", "SIGSTOP of the run and SIGCONT"
ENDS = {KILL: (signal.SIGKILL, -signal.SIGKILL), TERM: (signal.SIGTERM, 143), INT: (signal.SIGINT, 130),
        HUP: (signal.SIGHUP, 129), USR1: (signal.SIGUSR1, 138)}
"""Disturbances that end a run: their signal, and the exit status."""
PATIENCE = 120.0
Start = Callable[[Path], RunProcess]


def overrides(deadline: float) -> tuple[str, ...]:
    """Of these runs: seconds of silence after which a worker counts as hung, enough for one that starves beside other
    work (a live one that is taken for hung is another result)."""
    return (f"worker.deadline_seconds={deadline:g}",)


def undisturbed(folder: Path, deadline: float) -> float:
    """A run that nobody disturbs in ``folder``; about how long an evaluation takes in it, in seconds."""
    ended = RunProcess(folder, overrides(deadline)).wait()
    if ended.status != 0:
        raise RuntimeError(f"the undisturbed run ended with {ended.status}: {ended.output}")
    return ended.seconds / max(1, len(keys(folder)))


def disturb(wanted: dict[str, int], folder: Path, plain: Path, evaluation: float, rng: np.random.Generator,
            end: float, tries: Tries, start: Start, stopped: float = 0.0) -> None:
    """Start runs and disturb each again and again until it ends, until every kind was tried as often as wanted, or
    the monotonic time is ``end``: the run that goes on is left to its end. A try is noted once its run has ended.
    ``stopped`` is how long a run is stopped, in seconds."""
    folder.mkdir()
    done: Counter[str] = Counter()
    number = 0
    while any(done[kind] < n for kind, n in wanted.items()) and time.monotonic() < end:
        _one_run(folder / f"run{number}", plain, wanted, done, evaluation, rng, end, tries, start, stopped)
        number += 1


def _one_run(run: Path, plain: Path, wanted: dict[str, int], done: Counter[str], evaluation: float,
             rng: np.random.Generator, end: float, tries: Tries, start: Start, stopped: float) -> None:
    """One full run, disturbed while anything is wanted, there is time and it has not ended."""
    met: list[tuple[str, str, bool]] = []
    total, process = journal_lines(plain), start(run)
    while (left := [kind for kind, n in wanted.items() if done[kind] < n]) and time.monotonic() < end:
        before, kind = keys(run), str(rng.choice(left, p=_shares(left, wanted, done)))
        _wait_for_line(process, journal_lines(run) + int(rng.integers(0, max(2, total // 6))))
        time.sleep(float(rng.uniform(0, evaluation)))
        if not _strike(process, kind, stopped):
            break  # it ended before
        done[kind] += 1
        if kind not in ENDS:
            met.append((kind, "", False))
            _wait_for_line(process, journal_lines(run) + 1)  # what is lost twice is a failure, as it should be
            continue
        ended = process.wait()
        problem = _check_stop(kind, ended, before, keys(run))
        met.append((kind, problem, kind == KILL and _was_in_the_middle(run)))
        at = f"{len(keys(run))} of {len(keys(plain))} evaluations"
        print(f"{run.parent.name}/{run.name}: {kind} after {at}; {problem or 'well'}", flush=True)
        process = start(run)
    wrong = _check_end(run, plain, process.wait())
    print(f"{run.parent.name}/{run.name}: ended after {len(met)} disturbances; {wrong or 'as undisturbed'}", flush=True)
    for kind, problem, in_the_middle in met:
        tries.add(kind, problem or wrong, in_the_middle)


def _shares(left: list[str], wanted: dict[str, int], done: Counter[str]) -> np.ndarray[Any, Any]:
    missing = np.array([wanted[kind] - done[kind] for kind in left], dtype=np.float64)
    return missing / missing.sum()


def _wait_for_line(process: RunProcess, lines: int) -> None:
    end = time.monotonic() + PATIENCE
    while journal_lines(process.folder) < lines and _is_running(process) and time.monotonic() < end:
        time.sleep(.003)


def _is_running(process: RunProcess) -> bool:
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _strike(process: RunProcess, kind: str, stopped: float) -> bool:
    """Disturb; false where there was nothing left to disturb."""
    if not _is_running(process):
        return False
    end = time.monotonic() + PATIENCE
    if kind in ENDS:
        signum, _ = ENDS[kind]
        while kind != KILL and not process.catches(signal.SIGUSR1) and _is_running(process) and time.monotonic() < end:
            time.sleep(.003)  # before the run handles signals a process can only die of one
        process.signal(signum)
        return True
    if kind == STOP:
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(stopped)
        os.killpg(process.pid, signal.SIGCONT)
        return True
    while not process.children() and _is_running(process) and time.monotonic() < end:
        time.sleep(.003)
    if not process.children():
        return False
    os.kill(process.children()[0], signal.SIGKILL if kind == WORKER else HANG_SIGNAL)
    return True


def _was_in_the_middle(run: Path) -> bool:
    """Whether an evaluation had steps behind it: a checkpoint (written at every step) is newer than the journal."""
    journal = run / JOURNAL_NAME
    if not journal.exists():
        return False
    at = journal.stat().st_mtime_ns
    return any(p.stat().st_mtime_ns > at for p in (run / "checkpoints").glob("*.safetensors"))


def _check_stop(kind: str, ended: Ended, before: list[str], after: list[str]) -> str:
    _, expected = ENDS[kind]
    if ended.status not in (expected, 0):  # a signal may come after the last line
        return f"{kind} ended with {ended.status}, not {expected}: {ended.output[-300:]}"
    if after[:len(before)] != before:
        return f"{kind} lost finished evaluations"
    return ""


def _check_end(run: Path, plain: Path, ended: Ended) -> str:
    if ended.status != 0:
        return f"it ended with {ended.status}: {ended.output[-500:]}"
    if keys(run) != keys(plain):
        return "evaluations were lost, repeated or made in another order"
    if result(run) != result(plain):
        return "the result differs from the undisturbed run's"
    if len(set(keys(run))) < len(keys(run)):
        return "evaluations were repeated"
    has_adapter = (plain / "adapter").is_dir()
    return "the adapter differs from the undisturbed run's" if has_adapter and adapter(run) != adapter(plain) else ""
