"""Update rule of the trust region."""

from qra_bo.searchers.observations import TrustRegion

REGION = TrustRegion(radius=4, smallest=1, largest=10, start=4, failure_streak=2)


def test_grows_after_a_success_up_to_its_cap() -> None:
    assert REGION.update(True).radius == 8
    assert REGION.update(True).update(True).radius == 10


def test_shrinks_after_a_streak_of_failures() -> None:
    assert REGION.update(False).radius == 4
    assert REGION.update(False).update(False).radius == 2


def test_a_success_breaks_a_streak_of_failures() -> None:
    assert REGION.update(False).update(True).update(False).radius == 8


def test_restarts_when_it_would_vanish() -> None:
    region = TrustRegion(radius=1, smallest=1, largest=10, start=4, failure_streak=1)
    assert region.update(False).radius == 4


def test_the_update_is_pure() -> None:
    before = REGION
    REGION.update(True)
    assert before == REGION
