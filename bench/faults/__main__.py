"""Provoke the faults of a run, each part in a process of its own.

    python -m bench.faults [disturbances|kinds|corruption ...] [--minutes 60] [--short]

Every try is logged when it ends: the same command goes on with what is missing, or failed. Exit status: 0 where every
try was well, else 1.
"""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.faults.log import Session
from bench.report import RESULTS

PARTS = ("disturbances", "kinds", "corruption")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="|".join(PARTS), help="by default all")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop a part then, and publish what was tried")
    parser.add_argument("--seed", type=int, default=0, help="of random moments and orders")
    parser.add_argument("--log", type=Path, default=Path("outputs/faults"), help="folder of what was tried")
    parser.add_argument("--short", action="store_true", help="one try of each kind, and nothing is kept")
    options = parser.parse_args()
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"parts are {', '.join(PARTS)}; got {', '.join(unknown)}")
    if len(options.parts) > 1:  # each patches modules of its own
        common = [f"--minutes={options.minutes}", f"--seed={options.seed}", f"--log={options.log}",
                  *(["--short"] if options.short else [])]
        return max(subprocess.run([sys.executable, "-m", "bench.faults", part, *common], check=False).returncode
                   for part in options.parts)
    [part] = options.parts
    os.environ.setdefault("QRA_BO_CACHE", tempfile.mkdtemp(prefix="qra_bo-cache-"))
    folder = Path(tempfile.mkdtemp(prefix=f"qra_bo-{part}-"))
    log = folder if options.short else options.log
    log.mkdir(parents=True, exist_ok=True)
    session = Session(folder, log, folder if options.short else RESULTS, time.monotonic() + 60 * options.minutes,
                      options.seed, options.short)
    good: bool = importlib.import_module(f"bench.faults.{part}").provoke(session)
    if good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
