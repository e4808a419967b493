"""What tests cache is theirs alone, and goes when they end; no test waits for the disk; and the user without rights
whom tests may run as."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.hostile import Place, unprivileged

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the folder
    os.environ["QRA_BO_CACHE"] = tempfile.mkdtemp(prefix="qra_bo-tests-")
    atexit.register(shutil.rmtree, os.environ["QRA_BO_CACHE"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """Keep what was imported and collected out of later garbage collections, which took a twelfth of the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # extension modules look for leaks when the interpreter ends


@pytest.fixture(scope="session", autouse=True)
def _no_disk_waits() -> Iterator[None]:
    """A test needs no power-cut safety; waiting for the disk was most of the time of those that keep a journal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.fixture(name="place")
def make_place() -> Iterator[Place]:
    """Home, cache and working directory of a user who is not root; ``place.run`` runs a command there."""
    with unprivileged() as place:
        yield place
