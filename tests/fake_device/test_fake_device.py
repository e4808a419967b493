"""The device code of a search on a fake device, in a process of its own: the API that registers one is private."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = 4


@pytest.mark.parametrize("rounds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_search_keeps_to_the_device_and_its_types(rounds: int) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.fake_device.search", str(rounds)], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.splitlines()[-1]) == rounds * BACKENDS
