"""Update rule of the trust region."""

import pytest

from qra_bo.searchers.observations import TrustRegion

GROWN, FAILED = True, False


@pytest.mark.parametrize(("radius", "updates", "after"), [
    (4, [GROWN], 8), (4, [GROWN, GROWN], 10),                 # up to its cap
    (4, [FAILED] * 2, 4), (4, [FAILED] * 3, 2),               # after a streak
    (4, [FAILED, FAILED, GROWN, FAILED, FAILED], 8),          # which a success breaks
    (4, [FAILED] * 9, 4)])                                    # it starts anew where it would vanish
def test_region_grows_shrinks_and_starts_anew(radius: int, updates: list[bool], after: int) -> None:
    region = TrustRegion(radius, largest=10)
    for improved in updates:
        region.update(improved)
    assert region.radius == after
