"""Ordered value ladders: the discrete axes of the search space (the sets Q and R)."""

import bisect
from dataclasses import dataclass

from qra_bo.utils.errors import SpaceError


@dataclass(frozen=True, slots=True)
class Ladder:
    """Strictly increasing admissible values of one axis, steps may be unequal.

    Args:
        name: Axis name used in messages, e.g. ``"ranks"``.
        values: At least one positive integer, strictly increasing, e.g. ``(2, 3, 4, 8)``.

    Raises:
        SpaceError: If ``values`` is empty, not positive integers or not strictly increasing.
    """

    name: str
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        ints = all(type(v) is int for v in self.values)
        ok = bool(self.values) and ints and self.values[0] > 0
        if not ok or any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise SpaceError(f"the {self.name} ladder must be positive integers, strictly increasing, "
                             f"e.g. [2,3,4,8]; got {list(self.values)}")

    def __len__(self) -> int:
        return len(self.values)

    def index(self, value: int) -> int:
        """Position of ``value``.

        >>> Ladder("ranks", (2, 4, 8)).index(4)
        1

        Raises:
            SpaceError: If the value is off the ladder.
        """
        i = bisect.bisect_left(self.values, value)
        if i == len(self.values) or self.values[i] != value:
            raise SpaceError(f"{value} is not on the {self.name} ladder {list(self.values)}")
        return i
