"""Which calls of a run are made to fail, and which of them still have to be tried."""

from pathlib import Path

import pytest

from bench.faults.log import Tries
from bench.faults.syscalls import numbers


@pytest.mark.parametrize(("count", "tried"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (34, [1, 17, 34])])
def test_first_middle_and_last_call_are_tried_each_once(count: int, tried: list[int]) -> None:
    assert sorted(numbers(count)) == tried


def test_names_of_calls_do_not_depend_on_their_number() -> None:
    assert numbers(1) == {1: "only"}
    assert numbers(2) == {1: "first", 2: "last"}
    assert numbers(9) == {1: "first", 5: "middle", 9: "last"}


def test_last_try_of_a_fault_counts(tmp_path: Path) -> None:
    tries = Tries(tmp_path / "log")
    tries.add("a", "results differ")
    tries.add("b", "")
    tries.add("a", "")
    assert tries.last == {"a": "", "b": ""}
