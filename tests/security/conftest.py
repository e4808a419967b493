"""A finished run to tamper with."""

import shutil
from pathlib import Path

import pytest

from tests.finetune.test_manifest import make_run


@pytest.fixture(scope="session", name="whole")
def make_whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; a test that changes it takes ``run``, or a copy of its own."""
    folder = tmp_path_factory.mktemp("whole")
    make_run(folder)
    return folder


@pytest.fixture(name="run")
def copy_run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))
