"""Short runs stopped and continued, killed and signalled at random moments: nothing may be lost or repeated.

    python -m bench.signals [--planted 200] [--real 50] [--minutes 60] [--seed 0] [--log FOLDER] [--short]

Runs of the planted oracle, and of ``tiny`` with the real one, are disturbed again and again until they end; their
trials, in order, results and adapters must equal those of an undisturbed run. A stop of a real run is longer than its
worker's deadline. Every try is logged when its run ends: the same command goes on with what is missing.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.fault_kinds import PAUSE, planted
from bench.fault_log import Tries
from bench.fault_runs import RunProcess, warm_up
from bench.fault_signals import ENDS, STOP, disturb, overrides, undisturbed
from bench.report import RESULTS, Target, publish

KINDS = (*ENDS, STOP)
DEADLINE = 20.0
"""Seconds of silence after which a worker counts as hung: enough for one that starves beside other work."""
STARTS = {"planted": planted, "real": lambda folder: RunProcess(folder, overrides(DEADLINE))}
STOPPED = {"planted": 0.5, "real": DEADLINE + 1.0}
"""Seconds that a run is stopped; those of the planted oracle have no workers."""


def shares(total: int) -> dict[str, int]:
    """Return how often every kind is tried: evenly, the first kinds once more."""
    return {kind: total // len(KINDS) + (i < total % len(KINDS)) for i, kind in enumerate(KINDS)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where nothing was lost or repeated, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", type=int, default=200, help="disturbances of runs of the planted oracle")
    parser.add_argument("--real", type=int, default=50, help="disturbances of real runs of tiny")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop then, and publish what was tried")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--log", type=Path, default=Path("outputs/signals"), help="folder of what was tried")
    parser.add_argument("--short", action="store_true", help="a few of each, and nothing is kept")
    options = parser.parse_args(arguments)
    wanted = {"planted": 6, "real": 2} if options.short else {"planted": options.planted, "real": options.real}
    os.environ.setdefault("QRA_BO_CACHE", tempfile.mkdtemp(prefix="qra_bo-cache-"))
    folder, end = Path(tempfile.mkdtemp(prefix="qra_bo-signals-")), time.monotonic() + 60 * options.minutes
    warm_up()
    log = folder if options.short else options.log
    log.mkdir(parents=True, exist_ok=True)
    tries = {oracle: Tries(log / f"{oracle}.jsonl") for oracle in wanted}
    for i, oracle in enumerate(wanted):
        tried = tries[oracle].tried
        missing = {kind: max(0, n - tried[kind]) for kind, n in shares(wanted[oracle]).items()}
        if not any(missing.values()):
            continue
        plain = folder / f"{oracle}-undisturbed"
        if oracle == "real":
            trial = undisturbed(plain, DEADLINE)
        else:
            ended, trial = planted(plain).wait(), PAUSE
            if ended.status != 0:
                raise RuntimeError(f"the undisturbed run ended with {ended.status}: {ended.output}")
        rng = np.random.default_rng([options.seed, i, tried.total()])
        disturb(missing, folder / oracle, plain, trial, rng, end, tries[oracle], STARTS[oracle], STOPPED[oracle])
    rows = [{"oracle": oracle, "disturbance": kind, "tries": t.tried[kind], "good": t.good[kind]}
            for oracle, t in tries.items() for kind in KINDS]
    targets = []
    for oracle, t in tries.items():
        done, good = sum(t.tried.values()), sum(t.good.values())
        targets.append(Target(f"disturbances of runs of the {oracle} oracle after which nothing was lost or repeated",
                              f">= {wanted[oracle]}, all that were tried ({done})", good,
                              good == done >= wanted[oracle]))
    publish("signals", targets, rows, ["oracle", "disturbance", "tries", "good"], threads=1,
            folder=folder if options.short else RESULTS)
    well = all(t.tried == t.good for t in tries.values())
    if well:
        shutil.rmtree(folder)
    return 0 if well else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
