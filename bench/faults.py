"""Faults of long runs, provoked: each run must end correctly, or stop with a message and resume.

    python -m bench.faults [--kills 100] [--tries 10] [--jobs 1] [--minutes 600] [--seed 0] [--log FILE] [--short]

Runs of ``tiny`` with the real oracle are killed at random moments, many in the middle of a trial, and resumed
until they end; their results must equal those of an undisturbed run. Every other fault has its own runs. Every try is
logged when it ends: the same command resumes a stopped benchmark.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.fault_kinds import KINDS, OUTCOMES, PLANTED, needs_root, planted
from bench.fault_log import Tries
from bench.fault_runs import RunProcess, warm_up
from bench.fault_signals import HANG, INT, KILL, TERM, WORKER, disturb, overrides, undisturbed
from bench.report import RESULTS, Target, publish

SIGNALS = {KILL: "goes on to the same result", TERM: "status 143, then the same result",
           INT: "status 130, then the same result", WORKER: "its evaluation is begun again; same result",
           HANG: "killed at its deadline and begun again; same result"}
MANY = 20
"""Kills below which chance alone decides whether some hit an evaluation."""
SHOWN_EVERY = 120.0
"""Seconds between two tables of a benchmark that goes on."""


def inject_all(wanted: dict[str, int], folder: Path, seed: int, end: float, tries: Tries) -> None:
    """Every fault that is no signal, in runs of the planted oracle; none that needs more rights than there are."""
    plain = folder / "planted"
    ended = planted(plain).wait()
    if ended.status != 0:
        raise RuntimeError(f"the undisturbed run with {PLANTED} ended with {ended.status}: {ended.output}")
    rng = np.random.default_rng([seed, 1])
    for number in range(max(wanted.values())):  # in turn: a run that is stopped has tried them all about as often
        for kind in KINDS:
            if number < wanted[kind] and time.monotonic() < end and not needs_root(kind):
                tries.add(kind, inject(kind, number, folder, plain, rng))


def inject(kind: str, number: int, folder: Path, plain: Path, rng: np.random.Generator) -> str:
    """One try of one fault; what went wrong, or nothing."""
    where = folder / f"{list(KINDS).index(kind)}-{number}"
    try:
        problem = KINDS[kind](where, plain, rng)
    except Exception as error:  # whatever a broken run leaves behind is told with it
        problem = f"{type(error).__name__}: {error}"
    if not problem:
        shutil.rmtree(where, ignore_errors=True)
    print(f"{kind}, try {number}: {problem or 'well'}", flush=True)
    return problem


def beside(work: Callable[[], None]) -> int:
    """Do some work in a forked process (no pool: its threads would be forked with the runs); its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return pid


def rows_of(tries: Tries) -> list[dict[str, Any]]:
    """One row for every fault: how often it was made to happen, how often all was well, and what that means."""
    tried, good = tries.tried, tries.good
    return [{"fault": kind, "tries": tried[kind], "good": good[kind],
             "outcome": outcome if tried[kind] else "not tried: no time, or no right to mount",
             "oracle": "real" if kind in SIGNALS or "memory" in kind or "numbers" in kind else "planted"}
            for kind, outcome in (SIGNALS | OUTCOMES).items()]


def targets_of(tries: Tries, kills: int, wanted: int) -> list[Target]:
    """The kills, and that every fault was met as it should be."""
    rows = rows_of(tries)
    done, good = tries.tried[KILL], tries.good[KILL]
    well = sum(0 < r["good"] == r["tries"] >= wanted for r in rows)
    targets = [
        Target("kills of real runs on tiny after which results, adapter and evaluations were as undisturbed",
               f">= {kills}, all that were tried ({done})", good, good == done >= kills),
        Target("faults met as they should be in every try", f"all {len(rows)}, {wanted} tries each", well,
               well == len(rows))]
    if kills >= MANY:
        targets.insert(1, Target("of these, kills in the middle of an evaluation", "many", tries.in_the_middle,
                                 tries.in_the_middle >= done / 4))
    return targets


def show(tries: Tries, kills: int, wanted: int, folder: Path) -> None:
    """Publish what was tried until now."""
    publish("faults", targets_of(tries, kills, wanted), rows_of(tries), ["fault", "tries", "good", "outcome", "oracle"],
            threads=1, folder=folder)
    print(f"versions that were tried: {', '.join(tries.commits)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where every try was well, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills of real runs")
    parser.add_argument("--tries", type=int, default=10, help="tries of every other fault")
    parser.add_argument("--jobs", type=int, default=1, help="real runs that are disturbed side by side")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop then, and publish what was tried")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--log", type=Path, default=Path("outputs/faults.jsonl"),
                        help="what was tried, a line each; the same command goes on with what is missing there")
    parser.add_argument("--short", action="store_true", help="a few tries of everything, and nothing is kept")
    options = parser.parse_args(arguments)
    kills, wanted, jobs = (2, 1, 1) if options.short else (options.kills, options.tries, options.jobs)
    deadline = 20.0 if options.short else 45.0
    os.environ.setdefault("QRA_BO_CACHE", tempfile.mkdtemp(prefix="qra_bo-cache-"))
    folder, end = Path(tempfile.mkdtemp(prefix="qra_bo-faults-")), time.monotonic() + 60 * options.minutes
    log, results = (folder / "tries.jsonl", folder) if options.short else (options.log, RESULTS)
    log.parent.mkdir(parents=True, exist_ok=True)
    tries, plain = Tries(log), folder / "undisturbed"
    warm_up()
    evaluation = undisturbed(plain, deadline)
    before = tries.tried
    missing = {kind: max(0, n - before[kind])
               for kind, n in {**dict.fromkeys((*SIGNALS, *KINDS), wanted), KILL: kills}.items()}
    left = [beside(lambda: inject_all({k: missing[k] for k in KINDS}, folder, options.seed + sum(before.values()), end,
                                       tries))]
    left += [beside(lambda i=i: disturb(  # type: ignore[misc]
        {kind: missing[kind] // jobs + (i < missing[kind] % jobs) for kind in SIGNALS}, folder / f"chain{i}", plain,
        evaluation, np.random.default_rng([options.seed + sum(before.values()), 2 + i]), end, tries,
        lambda run: RunProcess(run, overrides(deadline))))
        for i in range(jobs)]
    failed, shown = False, time.monotonic()
    while left:
        time.sleep(.2)
        for pid in list(left):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                left.remove(pid)
                failed |= status != 0
        if time.monotonic() > shown + SHOWN_EVERY:
            show(tries, kills, wanted, results)
            shown = time.monotonic()
    show(tries, kills, wanted, results)
    good = not failed and tries.tried == tries.good
    if good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
