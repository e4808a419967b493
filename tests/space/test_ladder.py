"""Ladders: order and refusal."""

import pytest

from qra_bo.space.space import check_ladder
from qra_bo.utils.errors import SpaceError


@pytest.mark.parametrize("values", [(), (0, 2), (-1, 2), (4, 2), (2, 2), (2, 3.0), (True, 2), ("2",)])
def test_malformed_ladders_are_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(SpaceError, match="the ranks ladder must be positive integers, strictly increasing"):
        check_ladder("ranks", values)
