"""Update rule of the trust region."""

from qra_bo.searchers.region import TrustRegion

REGION = TrustRegion(radius=4, smallest=1, largest=10, start=4, success_streak=2, failure_streak=2)


def test_grows_after_a_streak_of_successes_up_to_its_cap() -> None:
    once = REGION.update(True)
    assert (once.radius, once.successes) == (4, 1)
    twice = once.update(True)
    assert (twice.radius, twice.successes) == (8, 0)
    assert twice.update(True).update(True).radius == 10


def test_shrinks_after_a_streak_of_failures() -> None:
    assert REGION.update(False).radius == 4
    assert REGION.update(False).update(False).radius == 2


def test_a_success_breaks_a_streak_of_failures() -> None:
    assert REGION.update(False).update(True).update(False).radius == 4


def test_restarts_when_it_would_vanish() -> None:
    region = TrustRegion(radius=1, smallest=1, largest=10, start=4, failure_streak=1)
    after = region.update(False)
    assert (after.radius, after.restarts) == (4, 1)


def test_the_update_is_pure() -> None:
    before = REGION
    REGION.update(True)
    assert before == REGION
