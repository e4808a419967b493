"""The device code of a search on a fake device, in a process of its own: the API that registers one is private."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAININGS = 7 * 5
"""Every initialisation with every backend."""


def test_search_keeps_to_the_device_and_its_types() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.fake_device.search"], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.splitlines()[-1]) == TRAININGS
