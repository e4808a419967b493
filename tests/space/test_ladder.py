"""Ladders: order, lookup and refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qra_bo.space import Ladder
from qra_bo.utils.errors import SpaceError


@pytest.mark.parametrize("values", [(), (0, 2), (-1, 2), (4, 2), (2, 2), (2, 3.0), (True, 2), ("2",)])
def test_malformed_ladders_are_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(SpaceError, match="the ranks ladder must be positive integers, strictly increasing"):
        Ladder("ranks", values)


@given(st.sets(st.integers(1, 10_000), min_size=1, max_size=20))
def test_index_is_the_inverse_of_values(members: set[int]) -> None:
    ladder = Ladder("ranks", tuple(sorted(members)))
    assert len(ladder) == len(members)
    assert [ladder.index(v) for v in ladder.values] == list(range(len(ladder)))


@pytest.mark.parametrize("value", [1, 5, 9])
def test_values_off_the_ladder_are_never_rounded(value: int) -> None:
    with pytest.raises(SpaceError, match=rf"{value} is not on the bits ladder \[2, 3, 4, 8\]"):
        Ladder("bits", (2, 3, 4, 8)).index(value)
