"""Search with a method of your own: this class and conf/method/coordinate.yaml, which names it, are all it takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import qra_bo
from qra_bo.searchers.base import SearchProblem
from qra_bo.trials import Fidelity, Proposal, Trial


class CoordinateSearch:
    """Changes a few units of the incumbent at random.

    Args:
        problem: Space, costs, budget, sensitivities and seed.
        changes: Units changed in one proposal.
    """

    name = "coordinate"

    def __init__(self, problem: SearchProblem, changes: int = 2) -> None:
        self.problem, self.changes, self.rng = problem, changes, problem.rng("coordinate")
        self.incumbent: Trial | None = None
        self.seen: set[str] = set()

    def ask(self, n: int) -> list[Proposal]:
        """Return up to ``n`` new allocations within the budget."""
        space, proposals = self.problem.space, []
        for _ in range(1000):
            row = np.zeros(2 * space.n_units, dtype=np.int64) if self.incumbent is None else \
                space.encode(self.incumbent.allocation)
            for unit in self.rng.choice(space.n_units, size=self.changes, replace=False):
                row[unit] = self.rng.integers(len(space.formats))
                row[space.n_units + unit] = self.rng.integers(len(space.ranks))
            allocation = space.decode(row)
            if self.problem.fits(allocation) and allocation.fingerprint not in self.seen:
                self.seen.add(allocation.fingerprint)
                proposals.append(Proposal(allocation, Fidelity.HIGH, "coordinate"))
            if len(proposals) == n:
                break
        return proposals

    def tell(self, trials: Sequence[Trial]) -> None:
        """Keep the best allocation that fits: uniform baselines may lie off the ladders or over the budget."""
        for trial in trials:
            best, allocation = self.incumbent, trial.allocation
            self.seen.add(allocation.fingerprint)
            usable = self.problem.space.contains(allocation) and self.problem.fits(allocation)
            if trial.loss is not None and usable and (
                    best is None or best.loss is None or trial.loss < best.loss):
                self.incumbent = trial


if __name__ == "__main__":
    result = qra_bo.search(config_dir=str(Path(__file__).resolve().parent / "conf"), method="coordinate",
                           model="llama2_7b", budget="uniform:3,8", oracle="synthetic", effort="quick",
                           display="none", **{"effort.max_full_trials": 12, "method.changes": 3})
    print(result)
