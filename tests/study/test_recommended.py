"""What a method recommends is what the engine confirms."""

from pathlib import Path

from qra_bo.searchers.base import SearchProblem
from qra_bo.space import Allocation
from qra_bo.trials import Fidelity, Proposal
from tests.study.problem import Walk, run

MIXED = (Allocation(("hqq8", "nf4", "hqq2", "nf4"), (2, 2, 4, 2)),
         Allocation(("hqq2", "nf4", "hqq2", "nf4"), (1, 2, 1, 2)))


class Contrary(Walk):
    """Two allocations; recommends the one with the larger loss."""

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        self._queue = [Proposal(a, Fidelity.HIGH, "global") for a in MIXED]

    def ask(self, n: int) -> list[Proposal]:
        return [self._queue.pop(0) for _ in self._queue[:n]]

    def recommend(self) -> list[Allocation]:
        losses = {e.allocation: e.loss or 0.0 for e in self.told if e.allocation in MIXED}
        return sorted(losses, key=lambda a: -losses[a])


def test_what_is_recommended_is_confirmed_rather_than_the_least_loss(tmp_path: Path) -> None:
    outcome = run(tmp_path, searcher=Contrary)
    study = outcome.study
    losses = {a: study.point(a).loss for a in MIXED}  # type: ignore[union-attr]
    least, largest = sorted(MIXED, key=lambda a: losses[a] or 0.0)
    assert study.best_mixed.allocation == least
    assert study.confirmation.candidate == largest
    assert outcome.found.allocation == largest
