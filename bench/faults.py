"""Every fault that a long run meets, made to happen: does it end right, or stop with a message and go on?

    python -m bench.faults [--kills 100] [--tries 10] [--jobs 1] [--minutes 600] [--seed 0] [--short]

Runs of ``tiny`` with the real oracle are killed at random moments, many in the middle of an evaluation, and resumed
until they end; they must end as a run does that nobody disturbed. All other faults happen in runs of their own.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.fault_kinds import KINDS, OUTCOMES, PLANTED, needs_root, planted
from bench.fault_runs import warm_up
from bench.fault_signals import HANG, INT, KILL, TERM, WORKER, Disturbed, disturb, undisturbed
from bench.report import Target, publish

SIGNALS = {KILL: "goes on to the same result", TERM: "status 143, then the same result",
           INT: "status 130, then the same result", WORKER: "its evaluation is begun again; same result",
           HANG: "killed at its deadline and begun again; same result"}


def inject_all(tries: int, folder: Path, seed: int, end: float) -> dict[str, list[str]]:
    """Every fault that is no signal, in runs of the planted oracle; none that needs more rights than there are."""
    plain = folder / "planted"
    ended = planted(plain).wait()
    if ended.status != 0:
        raise RuntimeError(f"the undisturbed run with {PLANTED} ended with {ended.status}: {ended.output}")
    rng = np.random.default_rng([seed, 1])
    return {kind: [] if needs_root(kind) else inject(kind, tries, folder, plain, rng, end) for kind in KINDS}


def inject(kind: str, tries: int, folder: Path, plain: Path, rng: np.random.Generator, end: float) -> list[str]:
    """``tries`` tries of one fault; what went wrong in each, empty where nothing did."""
    found: list[str] = []
    for number in range(tries):
        if time.monotonic() > end:
            break
        where = folder / f"{list(KINDS).index(kind)}-{number}"
        try:
            found.append(KINDS[kind](where, plain, rng))
        except Exception as error:  # whatever a broken run leaves behind is told with it
            found.append(f"{type(error).__name__}: {error}")
        if not found[-1]:
            shutil.rmtree(where, ignore_errors=True)
        else:
            print(f"{kind}, try {number}: {found[-1]}")
    return found


def _beside(path: Path, work: Callable[[], Any]) -> Callable[[], Any]:
    """Do some work in a forked process (no pool: its threads would be forked with the runs); how to wait for it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            path.write_text(json.dumps(work()))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def collect() -> Any:
        os.waitpid(pid, 0)
        return json.loads(path.read_text())

    return collect


def rows_of(disturbed: Disturbed, injected: dict[str, list[str]]) -> list[dict[str, Any]]:
    """One row for every fault: how often it was made to happen, how often all was well, and what that means."""
    rows = [{"fault": kind, "tries": disturbed.tries[kind], "good": disturbed.good[kind], "outcome": outcome,
             "oracle": "real"} for kind, outcome in SIGNALS.items()]
    for kind, problems in injected.items():
        counts = Counter(not p for p in problems)
        rows.append({"fault": kind, "tries": len(problems), "good": counts[True],
                     "outcome": OUTCOMES[kind] if problems else "not tried: no time, or no right to mount",
                     "oracle": "real" if "memory" in kind or "numbers" in kind else "planted"})
    return rows


def targets_of(disturbed: Disturbed, rows: Sequence[dict[str, Any]], kills: int, tries: int) -> list[Target]:
    """The kills, and that every fault was met as it should be."""
    done, good = disturbed.tries[KILL], disturbed.good[KILL]
    targets = [
        Target("kills of real runs on tiny after which results, adapter and evaluations were as undisturbed",
               f">= {kills}, all that were tried ({done})", good, good == done >= kills),
        Target("of these, kills in the middle of an evaluation", "many", disturbed.in_the_middle,
               disturbed.in_the_middle >= done / 4)]
    tried = [r for r in rows if r["tries"]]
    few = [r["fault"] for r in rows if r["tries"] < tries]
    targets.append(Target("faults met as they should be in every try", f"all {len(rows)}, {tries} tries each",
                          sum(r["good"] == r["tries"] for r in tried), not few and all(
                              r["good"] == r["tries"] for r in tried)))
    return targets


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where every try was well, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills of real runs")
    parser.add_argument("--tries", type=int, default=10, help="tries of every other fault")
    parser.add_argument("--jobs", type=int, default=1, help="real runs that are disturbed side by side")
    parser.add_argument("--minutes", type=float, default=600.0, help="stop then, and publish what was tried")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--short", action="store_true", help="a few tries of everything, and nothing is written")
    options = parser.parse_args(arguments)
    kills, tries, jobs = (2, 1, 1) if options.short else (options.kills, options.tries, options.jobs)
    os.environ.setdefault("QRA_BO_CACHE", tempfile.mkdtemp(prefix="qra_bo-cache-"))
    warm_up()
    folder, end = Path(tempfile.mkdtemp(prefix="qra_bo-faults-")), time.monotonic() + 60 * options.minutes
    wanted = {KILL: kills, **dict.fromkeys((TERM, INT, WORKER, HANG), tries)}
    plain = folder / "undisturbed"
    evaluation = undisturbed(plain)
    others = _beside(folder / "injected", lambda: inject_all(tries, folder, options.seed, end))
    chains = [_beside(folder / f"chain{i}.result", lambda i=i: vars(disturb(  # type: ignore[misc]
        {kind: n // jobs + (i < n % jobs) for kind, n in wanted.items()}, folder / f"chain{i}", plain, evaluation,
        np.random.default_rng([options.seed, 2 + i]), end))) for i in range(jobs)]
    disturbed = Disturbed()
    for collect in chains:
        found = collect()
        disturbed.add(Disturbed(Counter(found["tries"]), Counter(found["good"]), found["in_the_middle"], found["runs"],
                                found["problems"]))
    injected = others()
    rows = rows_of(disturbed, injected)
    for problem in disturbed.problems:
        print(problem)
    targets = targets_of(disturbed, rows, kills, tries)
    publish("faults", targets, rows, ["fault", "tries", "good", "outcome", "oracle"], threads=1,
            **({"folder": folder} if options.short else {}))
    good = not disturbed.problems and all(r["good"] == r["tries"] for r in rows)
    if good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
