"""Sweeps on Hydra's launchers, each where its package is installed: jobs in folders of their own, bad ones included."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qra_bo.cli.app import read_jobs
from qra_bo.study.journal import read_journal

ROOT = Path(__file__).resolve().parents[2]
JOB = ("+model=tiny", "data=tiny", "oracle=synthetic", "method=random", "effort=quick", "effort.max_full_trials=3",
       "confirm.seeds=0", "display=none", "budget=uniform:4,4,1kB")
LAUNCHERS = {
    "basic": ("hydra", ()), "joblib": ("hydra_plugins.hydra_joblib_launcher", ("hydra.launcher.n_jobs=2",)),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", ("hydra.launcher.timeout_min=20",)),
    "ray": ("hydra_plugins.hydra_ray_launcher", ("+hydra.launcher.ray.init.num_cpus=2",
                                                 "+hydra.launcher.ray.init.include_dashboard=false"))}


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # no plugin of Hydra at all
        return False


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_goes_through_and_goes_on(launcher: str, tmp_path: Path) -> None:
    module, options = LAUNCHERS[launcher]
    if not installed(module):
        pytest.skip(f"hydra/launcher={launcher} is not installed")
    command = [sys.executable, "-m", "qra_bo", "--multirun", f"hydra/launcher={launcher}", *options, *JOB,
               f"hydra.sweep.dir={tmp_path}"]
    journal = tmp_path / "0" / "trials.jsonl"
    for _ in range(2):  # the second finds everything done
        before = journal.read_bytes() if journal.exists() else b""
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
                              text=True, check=False, timeout=500)
        assert done.returncode == 2, done.stdout + done.stderr
        assert [job.status for job in read_jobs(tmp_path)] == [0, 2]
        assert "below the smallest allocation" in done.stdout
        assert (tmp_path / "0" / "best.json").exists()
        assert not before or journal.read_bytes() == before
    assert any(e["event"] == "end" for e in read_journal(journal).events)
