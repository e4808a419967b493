"""Remaining time of a table, from the time its rows took so far."""

import time
from collections.abc import Callable, Sequence


class Pace:
    """Ratio of the time that rows took to their planned work.

    Args:
        weights: Planned work of every row, in any unit.
        clock: Monotonic seconds; tests give their own.
    """

    def __init__(self, weights: Sequence[float], clock: Callable[[], float] = time.monotonic) -> None:
        self._weights, self._clock = weights, clock
        self._since = clock()
        self._seconds = self._planned = 0.0

    def row_done(self, index: int, counts: bool) -> None:
        """Note that a row has ended.

        Args:
            index: Of the row.
            counts: Whether this session did all of its work; results of a journal and failed rows do not count.
        """
        now = self._clock()
        if counts:
            self._seconds += now - self._since
            self._planned += self._weights[index]
        self._since = now

    def seconds_left(self, rows: Sequence[int]) -> float | None:
        """Return the expected seconds of ``rows``; ``None`` before any row counts."""
        if not self._planned:
            return None
        return self._seconds / self._planned * sum(self._weights[i] for i in rows)
