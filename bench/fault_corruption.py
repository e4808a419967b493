"""Every file that a real run of ``tiny`` and its cache wrote, damaged in every way, under every use of the run.

    python -m bench.fault_corruption [--minutes 60] [--seed 0] [--short]

A damaged run that is loaded, resumed, reported or exported has to give a right result or a clear refusal. The list of
files is what the run really wrote.
"""

import argparse
import collections
import os
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from bench.report import RESULTS, Target, publish
from tests.damage import DAMAGES
from tests.faults.real import RealRun
from tests.faults.sweep import cases, problem_of, problem_with_cache

SHORT = 20
"""Cases of the short form."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where every case ended well, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop then, and publish what was tried")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the cases")
    parser.add_argument("--short", action="store_true", help="a few cases, and nothing is kept")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    warnings.simplefilter("ignore")
    tried: collections.Counter[tuple[str, str]] = collections.Counter()
    bad: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="qra_bo-corruption-") as parent:
        run = RealRun(Path(parent, "real"))
        every = list(cases(run))
        random.Random(options.seed).shuffle(every)
        wanted = every[:SHORT] if options.short else every
        for damage in DAMAGES:
            if not options.short:
                _count(tried, bad, damage, "search with the cache", problem_with_cache(run, damage))
        for case in wanted:
            if time.monotonic() > end:
                break
            _count(tried, bad, case.damage, case.use, problem_of(run, case), str(case))
    planned = len(wanted) + (0 if options.short else len(DAMAGES))
    rows = [{"damage": damage, "use": use, "cases": n, "failures": bad[damage, use]}
            for (damage, use), n in sorted(tried.items())]
    target = Target("damages to one file of a real run that ended in a right result or a clear refusal",
                    f"all {planned}", sum(tried.values()) - sum(bad.values()),
                    sum(tried.values()) == planned and not bad)
    publish("fault_corruption", [target], rows, ["damage", "use", "cases", "failures"], threads=1,
            folder=Path(tempfile.mkdtemp()) if options.short else RESULTS)
    return 0 if target.met else 1


def _count(tried: collections.Counter[tuple[str, str]], bad: collections.Counter[tuple[str, str]], damage: str,
           use: str, problem: str, what: str = "") -> None:
    tried[damage, use] += 1
    if problem:
        bad[damage, use] += 1
        print(f"{what or f'{damage}, {use}'}: {problem}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
