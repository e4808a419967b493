"""What a table says of the time that is left."""

import pytest

from bench.table1.pace import Pace


def test_rows_ahead_take_what_those_behind_took() -> None:
    now = 100.0
    pace = Pace([2.0, 1.0, 4.0, 3.0], lambda: now)
    assert pace.seconds_left([1, 2, 3]) is None
    now += 5.0  # of a row that a journal held in part
    pace.row_done(0, counts=False)
    assert pace.seconds_left([1, 2, 3]) is None
    now += 10.0
    pace.row_done(1, counts=True)
    assert pace.seconds_left([2, 3]) == pytest.approx(70.0)
    now += 20.0  # four times the work in twice the time
    pace.row_done(2, counts=True)
    assert pace.seconds_left([3]) == pytest.approx(3.0 * 30.0 / 5.0)
    assert pace.seconds_left([]) == 0
