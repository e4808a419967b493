"""The device code of a search on a fake device, in a process of its own: the API that registers one is private."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMBINATIONS = 2 * 2 + (10 * 7 + 18) + (10 + 18) + 2 * 4
"""Profiles; formats with every initialisation, or with one where they differ in a group's size or the type is fp32; and
optimisers with checkpointing."""


def test_every_format_initialisation_and_optimiser_keeps_to_the_device() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.fake_device.search"], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.splitlines()[-1]) == COMBINATIONS
