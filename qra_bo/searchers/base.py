"""The contract between search methods and the engine: ``SearchProblem`` and the ``Searcher`` protocol."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, CostTable, SearchSpace
from qra_bo.trials import Proposal, Trial


@dataclass(frozen=True)
class SearchProblem:
    """Everything a searcher may know besides finished trials.

    Args:
        space: Units and ladders.
        costs: Memory of every allocation, in the configured scope.
        budget_bytes: Hard limit on ``costs``.
        profile: Sensitivities of the units of ``space``; its formats are those of ``space``, in order.
        high_steps: Steps of a high-fidelity trial.
        low_steps: Steps of a low-fidelity trial, or ``None`` where no low fidelity is to be used.
        seed: Seed of the searcher's own named generators.
        max_full_trials: Full-trial equivalents that the run may spend; infinity is no limit.
    """

    space: SearchSpace
    costs: CostTable
    budget_bytes: int
    profile: SensitivityProfile
    high_steps: int
    low_steps: int | None
    seed: int
    max_full_trials: float = math.inf

    def fits(self, allocation: Allocation) -> bool:
        """Whether an allocation on the ladders is within the budget."""
        return bool(self.costs.feasible(self.space.encode(allocation)[None, :], self.budget_bytes)[0])

    def rng(self, component: str) -> np.random.Generator:
        """Return the named random stream of one component, independent of every other name's."""
        words = [int.from_bytes(component.encode()[i:i + 4].ljust(4, b"\0"), "little")
                 for i in range(0, len(component.encode()), 4)]
        return np.random.default_rng(np.random.SeedSequence(entropy=self.seed, spawn_key=tuple(words)))

    def with_seed(self, seed: int) -> "SearchProblem":
        """Return the same problem with another seed."""
        return replace(self, seed=seed)


@runtime_checkable
class Searcher(Protocol):
    """A search method: it proposes trials and learns of them through ``tell`` alone; it never calls an oracle.

    Its class is constructed as ``Class(problem, **options)`` with the options of a configuration (``make_searcher``).
    Its state is a function of the problem (seed included) and the sequence of ``ask`` and ``tell`` calls, so that
    replaying a journal restores it. It never proposes outside the budget or off the ladders, and never the same
    (allocation, fidelity) twice. Trials that it did not ask for (uniform baselines) may arrive at any time.
    """

    @property
    def name(self) -> str:
        """Name in messages, e.g. ``"autoqra"``."""
        ...

    def ask(self, n: int) -> list[Proposal]:
        """Return up to ``n`` new proposals; fewer or none when the space is exhausted or the method has converged."""
        ...

    def tell(self, trials: Sequence[Trial], /) -> None:
        """Learn of finished trials, failed ones included."""
        ...


@runtime_checkable
class Recommending(Protocol):
    """A searcher that ranks evaluated allocations by its posterior: the least loss seen may have been luck."""

    def recommend(self) -> Sequence[Allocation]:
        """Return allocations on the ladders and within the budget that have a high-fidelity loss, the best first."""
        ...


@runtime_checkable
class SelfChecking(Protocol):
    """A searcher that measures how well its surrogate predicts held-out observations."""

    def surrogate_check(self) -> Mapping[str, Any] | None:
        """Return every observation as the surrogate predicts it from the others; ``None`` with too few of them.

        Keys: ``observed``, ``predicted`` and ``sd`` (lists of ``n``, in nats), and over these ``n``, ``spearman``,
        ``spearman_good`` (among the better half; both ``None`` where undefined), ``nll`` (nats), ``coverage_50`` and
        ``coverage_90``.
        """
        ...
