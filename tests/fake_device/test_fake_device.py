"""The device code of a search on a fake device, in a process of its own: the API that registers one is private."""

import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from qra_bo.config.groups import AdapterConfig

ROOT = Path(__file__).resolve().parents[2]
INITS = get_args(get_type_hints(AdapterConfig)["init"])
BACKENDS = 4


@pytest.mark.parametrize("inits", [("kaiming",), pytest.param(INITS, marks=pytest.mark.slow)], ids=len)
def test_search_keeps_to_the_device_and_its_types(inits: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.fake_device.search", *inits], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.splitlines()[-1]) == len(inits) * BACKENDS
