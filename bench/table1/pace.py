"""How long a table still takes, from what its rows took so far."""

import time
from collections.abc import Callable, Sequence


class Pace:
    """Compares what rows took with what they were planned to take.

    Args:
        weights: Of every row, planned work in whatever unit.
        clock: Monotonic seconds; tests give their own.
    """

    def __init__(self, weights: Sequence[float], clock: Callable[[], float] = time.monotonic) -> None:
        self._weights, self._clock = weights, clock
        self._since = clock()
        self._seconds = self._planned = 0.0

    def row_done(self, index: int, counts: bool) -> None:
        """Tell that a row has ended.

        Args:
            index: Which.
            counts: Whether this session has done all of it: neither what a journal held nor a row without a result
                says anything of the pace.
        """
        now = self._clock()
        if counts:
            self._seconds += now - self._since
            self._planned += self._weights[index]
        self._since = now

    def seconds_left(self, rows: Sequence[int]) -> float | None:
        """What ``rows`` take if they keep to their plan as those before did; ``None`` while nothing is known."""
        if not self._planned:
            return None
        return self._seconds / self._planned * sum(self._weights[i] for i in rows)
