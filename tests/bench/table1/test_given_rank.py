"""Ranks that are tried for methods which take theirs as given."""

from types import SimpleNamespace
from typing import Any

import pytest

from bench.table1 import rows_given_rank
from bench.table1.limits import parse_limit


@pytest.mark.parametrize(("largest", "choices", "ranks"), [
    (16, 3, [16, 8, 4]), (2, 3, [2, 1]), (3, 1, [3]), (0, 1, [1]), (0, 3, [1, 2, 4]), (0, 7, [1, 2, 4, 8, 16])])
def test_ranks_are_halved_from_the_largest_with_nf4_and_doubled_from_one_where_that_does_not_fit(
        monkeypatch: pytest.MonkeyPatch, largest: int, choices: int, ranks: list[int]) -> None:
    monkeypatch.setattr(rows_given_rank, "largest_fitting_rank", lambda *_: largest)
    session: Any = SimpleNamespace(options=SimpleNamespace(rank_choices=choices))
    assert rows_given_rank.rank_choices(session, parse_limit("peak 1GB")) == ranks
