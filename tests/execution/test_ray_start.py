"""How Ray is started, against a stand-in of the package."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from qra_bo.execution.base import OracleSpec
from qra_bo.execution.on_ray import RayExecutor
from qra_bo.execution.pool import Limits


@pytest.mark.parametrize(("address", "given"), [(None, "local"), ("auto", "auto")])
def test_without_an_address_no_running_cluster_is_joined(address: str | None, given: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(
        is_initialized=lambda: bool(started), init=lambda **options: started.append(options["address"]),
        cluster_resources=dict, shutdown=started.clear))
    executor = RayExecutor(OracleSpec("tests.study.oracles:make"), Limits(1.0), 1, {}, address)
    assert started == [given]
    executor.close()
    assert not started
