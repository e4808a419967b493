"""Update rule of the trust region."""

import pytest

from qra_bo.searchers.observations import TrustRegion

GROWN, FAILED = True, False


@pytest.mark.parametrize(("radius", "updates", "after"), [
    (4, [GROWN], 8), (4, [GROWN, GROWN], 10),                 # up to its cap
    (4, [FAILED], 4), (4, [FAILED, FAILED], 2),               # after a streak
    (4, [FAILED, GROWN, FAILED], 8),                          # which a success breaks
    (1, [FAILED, FAILED], 4)])                                # it starts anew where it would vanish
def test_region_grows_shrinks_and_starts_anew(radius: int, updates: list[bool], after: int) -> None:
    region = TrustRegion(radius=radius, smallest=1, largest=10, start=4, failure_streak=2)
    for improved in updates:
        region = region.update(improved)
    assert region.radius == after
