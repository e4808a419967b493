"""Two workers on Ray on one machine: trials that sleep, real ones on tiny, and kill -9 of a worker and the driver.

    python -m bench.on_ray

Needs the extra ``ray``. Every real run is a ``python -m qra_bo`` of its own that starts Ray for itself alone.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.faults.runs import OVERRIDES, keys
from bench.report import Target, publish
from qra_bo.execution.base import OracleSpec
from qra_bo.execution.pool import Limits
from qra_bo.oracle.protocol import quiet
from qra_bo.space import uniform
from qra_bo.study.journal import JOURNAL_NAME, read_journal
from qra_bo.trials import TrialSpec

ON_RAY = ("executor=ray", "executor.workers=2", "executor.cpus=1", "worker.deadline_seconds=300")
SLEEPS, PAUSE = 8, 1.0
"""Evaluations that sleep, and seconds of each half of one."""
SPEEDUP = 1.8
SAME = "evaluations that both made, and with the same loss to the last bit"
DISTURBED = "runs on tiny of which a worker and then the driver was killed, and that were resumed"
PATIENCE = 900.0
Row = dict[str, Any]


def sleeping(workers: int) -> float:
    """Seconds that ``SLEEPS`` evaluations take which sleep most of their time, the workers being up."""
    from qra_bo.execution.on_ray import RayExecutor

    executor = RayExecutor(OracleSpec("tests.study.oracles:make", {"pause": PAUSE}), Limits(120), workers,
                           {"num_cpus": 1}, None)
    request = TrialSpec(uniform(4, "hqq4", 4), 8, 8, 3, 4e-3)
    try:
        for seeds in (range(100, 100 + workers), range(SLEEPS)):
            begin = time.monotonic()
            for seed in seeds:
                executor.submit(replace(request, train_seed=seed))
            for _ in seeds:
                executor.finished(quiet)
        return time.monotonic() - begin
    finally:
        executor.close()


def start(folder: Path, overrides: Sequence[str]) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "qra_bo", *OVERRIDES, f"out={folder}", *overrides],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""})


def end(process: subprocess.Popen[str]) -> None:
    """Wait for its end.

    Raises:
        RuntimeError: If it fails.
    """
    output, _ = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}: {output[-2000:]}")


def losses(folder: Path) -> dict[str, float | None]:
    """Loss of every evaluation by its key."""
    return {e["key"]: e["loss"] for e in read_journal(folder / JOURNAL_NAME).events if e["event"] == "trial"}


def workers_of(driver: int) -> list[int]:
    """Processes of Ray actors below a driver."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::RayWorker") and _is_below(int(folder.name), driver):
                found.append(int(folder.name))
    return found


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def wait_for(process: subprocess.Popen[str], folder: Path, evaluations: int) -> None:
    """Wait until so many evaluations have ended, or the run has."""
    limit = time.monotonic() + PATIENCE
    while len(keys(folder)) < evaluations and process.poll() is None and time.monotonic() < limit:
        time.sleep(.05)


def disturbed(folder: Path, rng: np.random.Generator) -> str:
    """A run of which a worker is killed, then the driver, and that is then resumed; what went wrong, or nothing."""
    process = start(folder, ON_RAY)
    wait_for(process, folder, int(rng.integers(1, 4)))
    time.sleep(float(rng.uniform(0, 1)))
    found = workers_of(process.pid)
    if not found:
        process.kill()
        return "no worker was found"
    os.kill(int(rng.choice(found)), signal.SIGKILL)
    wait_for(process, folder, len(keys(folder)) + 2)
    if process.poll() is not None:
        return f"it ended with {process.returncode} before its driver was killed"
    time.sleep(float(rng.uniform(0, 1)))
    process.kill()
    process.communicate()
    before = keys(folder)
    end(start(folder, ON_RAY))
    after = keys(folder)
    if after[:len(before)] != before:
        return "finished evaluations were lost"
    return "an evaluation was repeated" if len(after) > len(set(after)) else ""


def real_rows(folder: Path) -> list[Row]:
    """Runs on tiny: alone in one process, with two workers on Ray, and disturbed."""
    rows: list[Row] = []
    for what, overrides in (("one worker, executor=local", ()), ("two workers, executor=ray", ON_RAY)):
        begin, run = time.monotonic(), folder / what.split()[0]
        end(start(run, overrides))
        rows.append({"what": f"a run on tiny: {what}", "evaluations": len(keys(run)), "repeated":
                     len(keys(run)) - len(set(keys(run))), "seconds": time.monotonic() - begin})
        print(rows[-1], flush=True)
    one, two = losses(folder / "one"), losses(folder / "two")
    shared = one.keys() & two.keys()
    rows.append({"what": SAME,
                 "evaluations": len(shared), "good": sum(one[key] == two[key] for key in shared)})
    problem = disturbed(folder / "disturbed", np.random.default_rng(0))
    print(f"disturbed run: {problem or 'well'}", flush=True)
    rows.append({"what": DISTURBED, "user": "root" if os.geteuid() == 0 else "unprivileged", "tries": 1,
                 "good": int(not problem), "problems": [problem] if problem else []})
    return rows


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """What two workers must do."""
    found = {r["what"]: r for r in rows}
    speedup = found[sleep(1)]["seconds"] / found[sleep(2)]["seconds"]
    share = found[SAME]["good"] / max(1, found[SAME]["evaluations"])
    return [Target(f"speed-up of {SLEEPS} evaluations that sleep, two workers", f">= {SPEEDUP}", speedup,
                   speedup >= SPEEDUP),
            Target("share of losses on Ray that are those of one local worker", "1", share, share == 1.0),
            Target("disturbed runs with every evaluation once", "all", found[DISTURBED]["good"],
                   found[DISTURBED]["good"] == 1)]


def sleep(workers: int) -> str:
    """Name of a row."""
    return f"{SLEEPS} evaluations that sleep {2 * PAUSE:g} s, workers: {workers}"


def main() -> int:
    """Exit status: 0 where every target was met, else 1."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows: list[Row] = [{"what": sleep(n), "evaluations": SLEEPS, "seconds": sleeping(n)} for n in (1, 2)]
    with tempfile.TemporaryDirectory(prefix="qra_bo-ray-") as folder:
        rows += real_rows(Path(folder))
    targets = targets_of(rows)
    publish("ray", targets, rows, ["what", "evaluations", "seconds", "repeated", "tries", "good"], threads=1)
    return int(not all(t.met for t in targets))


if __name__ == "__main__":
    raise SystemExit(main())
