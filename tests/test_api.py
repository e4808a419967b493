"""``import qra_bo`` is quick, and what it offers is there."""

import subprocess
import sys

import pytest

import qra_bo


def test_importing_loads_no_torch() -> None:
    code = ("import qra_bo, sys\nqra_bo.Allocation, qra_bo.SearchSpace, qra_bo.MemoryModel, qra_bo.Oracle\n"
            "qra_bo.search\nassert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", qra_bo.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(qra_bo, name).__name__ == name
    assert name in dir(qra_bo)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = qra_bo.serach


def test_search_stays_a_function_whatever_is_imported() -> None:
    import qra_bo.searchers.evolution.searcher
    import qra_bo.tasks.search

    assert callable(qra_bo.search)
