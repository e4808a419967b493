"""The run whose files are damaged."""

import pytest

from tests.faults.real import RealRun


@pytest.fixture(scope="session", name="real")
def make_real(tmp_path_factory: pytest.TempPathFactory) -> RealRun:
    """Made once; nothing changes it."""
    return RealRun(tmp_path_factory.mktemp("real"))
