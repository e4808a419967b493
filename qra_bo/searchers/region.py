"""Eq. 11: the state of a trust region, measured in edits, and its update."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class TrustRegion:
    """Radius and streaks; the radius grows on success, shrinks on failure, and starts anew when it would vanish.

    Args:
        radius: Edits from the centre that are admitted.
        smallest: Below this radius the region has collapsed.
        largest: Cap of the radius.
        start: Radius after a restart.
        success_streak: Successes in a row that grow it.
        failure_streak: Failures in a row that shrink it.
        factor: Growth and shrinkage (at least one edit either way).
        successes: Current streak.
        failures: Current streak.
        restarts: How often it has collapsed.
    """

    radius: int
    smallest: int
    largest: int
    start: int
    success_streak: int = 1
    failure_streak: int = 3
    factor: float = 2.0
    successes: int = 0
    failures: int = 0
    restarts: int = 0

    def update(self, improved: bool) -> "TrustRegion":
        """Return the state after one more trial of a proposal from this region."""
        if improved:
            if self.successes + 1 < self.success_streak:
                return replace(self, successes=self.successes + 1, failures=0)
            grown = max(self.radius + 1, int(self.radius * self.factor))
            return replace(self, radius=min(grown, self.largest), successes=0, failures=0)
        if self.failures + 1 < self.failure_streak:
            return replace(self, failures=self.failures + 1, successes=0)
        shrunk = min(self.radius - 1, int(self.radius / self.factor))
        if shrunk < self.smallest:
            return replace(self, radius=self.start, successes=0, failures=0, restarts=self.restarts + 1)
        return replace(self, radius=shrunk, successes=0, failures=0)
