"""Runs killed, signalled or stopped and continued, or whose workers die, at random moments: nothing may be lost.

Runs of the planted oracle, and of ``tiny`` with the real one, are disturbed again and again until they end; their
trials, in order, results and adapters must equal those of an undisturbed run. A stop of a real run is longer than its
worker's deadline.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.faults.kinds import PAUSE, ends_as, planted
from bench.faults.log import Session, Tries
from bench.faults.runs import HANG_SIGNAL, Ended, RunProcess, adapter, journal_lines, keys, warm_up
from bench.report import Target, publish
from qra_bo.study.journal import JOURNAL_NAME

KILL, TERM, INT, WORKER, HANG = ("SIGKILL of the run", "SIGTERM", "Ctrl-C", "SIGKILL of the worker",
                                 "a worker that hangs")
HUP, USR1, STOP = "SIGHUP", "SIGUSR1", "SIGSTOP of the run and SIGCONT"
ENDS = {KILL: (signal.SIGKILL, -signal.SIGKILL), TERM: (signal.SIGTERM, 143), INT: (signal.SIGINT, 130),
        HUP: (signal.SIGHUP, 129), USR1: (signal.SIGUSR1, 138)}
"""Disturbances that end a run: their signal, and the exit status."""
PATIENCE = 120.0
DEADLINE = 45.0
"""Seconds of silence after which a worker counts as hung: enough for one that starves beside other work (a live one
that is taken for hung is another result)."""
Start = Callable[[Path], RunProcess]


@dataclass(frozen=True)
class Disturbed:
    """How runs of an oracle are disturbed.

    Args:
        start: Starts a run in a folder.
        stopped: Seconds that a run is stopped.
        wanted: Tries by disturbance.
    """

    start: Start
    stopped: float
    wanted: Mapping[str, int]


def oracles(short: bool) -> dict[str, Disturbed]:
    """Return both oracles; runs of the planted one have no workers."""
    deadline = 20.0 if short else DEADLINE
    real = dict.fromkeys((*ENDS, STOP, WORKER, HANG), 1 if short else 10)
    return {"planted": Disturbed(planted, 0.5, dict.fromkeys((*ENDS, STOP), 1 if short else 34)),
            "real": Disturbed(lambda folder: RunProcess(folder, (f"worker.deadline_seconds={deadline:g}",)),
                              deadline + 1.0, {**real, KILL: 2 if short else 100})}


def provoke(session: Session) -> bool:
    """Disturb runs of both oracles and return whether nothing was lost or repeated."""
    warm_up()
    rows, targets, well = [], [], True
    for i, (oracle, how) in enumerate(oracles(session.short).items()):
        tries = session.tries(f"signals-{oracle}")
        before = tries.tried
        missing = {kind: max(0, n - before[kind]) for kind, n in how.wanted.items()}
        if any(missing.values()):
            plain = session.folder / f"{oracle}-undisturbed"
            ended = how.start(plain).wait()
            if ended.status != 0:
                raise RuntimeError(f"the undisturbed run ended with {ended.status}: {ended.output}")
            trial = PAUSE if oracle == "planted" else ended.seconds / max(1, len(keys(plain)))
            disturb(missing, session.folder / oracle, plain, trial, session.random(2 + i, before.total()), session.end,
                    tries, how.start, how.stopped)
        tried, good, wanted = tries.tried, tries.good, sum(how.wanted.values())
        rows += [{"oracle": oracle, "disturbance": kind, "tries": tried[kind], "good": good[kind]}
                 for kind in how.wanted]
        targets.append(Target(f"disturbances of runs of the {oracle} oracle after which nothing was lost or repeated",
                              f">= {wanted}, all that were tried ({tried.total()})", good.total(),
                              good.total() == tried.total() >= wanted))
        if oracle == "real" and not session.short:
            targets.append(Target("kills in the middle of a trial", "a quarter", tries.in_the_middle,
                                  tries.in_the_middle >= tried[KILL] / 4))
        well &= tried == good
    publish("signals", targets, rows, ["oracle", "disturbance", "tries", "good"], threads=1, folder=session.results)
    return well


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
    problem = ends_as(run, plain, ended)
    if problem or keys(run) != keys(plain):
        return problem or "evaluations were made in another order"
    has_adapter = (plain / "adapter").is_dir()
    return "the adapter differs from the undisturbed run's" if has_adapter and adapter(run) != adapter(plain) else ""
