"""The search methods on problems other than language models: two ordered ladders a unit, one hard budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qra_bo.searchers.base import Searcher, SearchProblem
from qra_bo.searchers.structured import StructuredSearch
from qra_bo.sensitivity import SensitivityProfile
from qra_bo.space import Allocation, CostTable, Ladder, Linear, PhaseCost, SearchSpace, StorageFormat, Unit
from qra_bo.trials import Fidelity, Proposal, Trial, TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import SpaceError

Choice = tuple[tuple[int, ...], tuple[int, ...]]
"""Positions on the first ladder, one for each unit, then positions on the second."""


@dataclass(frozen=True)
class OrdinalProblem:
    """Which levels of two ordered ladders should each of ``L`` units have for the least objective within a budget?

    Raises ``SpaceError`` if shapes disagree, or nothing fits the budget.

    Args:
        units: Names of the ``L`` units.
        cost: ``L x F x R`` integers: cost of every unit at every pair of levels; costs of units add up.
        budget: The most that all units together may cost.
        harm: ``L x F``: a guess of how much worse the objective gets when only that unit is at that level of the first
            ladder. It need not be right: a search learns where it is wrong; only its shape counts.
        gain: ``L x R``: a guess, in any unit of measure, of the use of each level of the second ladder, not decreasing.
    """

    units: tuple[str, ...]
    cost: npt.NDArray[np.int64]
    budget: int
    harm: npt.NDArray[np.float64]
    gain: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        n, first, second = self.cost.shape
        shapes = {"units": (len(self.units),), "harm": self.harm.shape, "gain": self.gain.shape}
        wanted = {"units": (n,), "harm": (n, first), "gain": (n, second)}
        wrong = [f"{name} {shapes[name]}, expected {wanted[name]}" for name in wanted if shapes[name] != wanted[name]]
        if wrong:
            raise SpaceError(f"with costs of shape {self.cost.shape} these shapes do not fit: {'; '.join(wrong)}")
        least = int(self.cost.reshape(n, -1).min(axis=1).sum())
        if least > self.budget:
            raise SpaceError(f"the cheapest choice costs {least}, over the budget of {self.budget}; raise the budget")

    def problem(self, seed: int, trials: float) -> SearchProblem:
        """Return the same problem in the form that searchers take, for a search of so many trials."""
        _, first, second = self.cost.shape
        formats = tuple(StorageFormat(f"level{i}", "ordinal", i + 1, 0) for i in range(first))
        units = tuple(Unit(name, (Linear(name, second, second, i, "unit", name),)) for i, name in enumerate(self.units))
        space = SearchSpace(units, formats, Ladder("second ladder", tuple(range(1, second + 1))))
        profile = SensitivityProfile(self.units, tuple(f.name for f in formats), self.harm, self.harm, self.gain, 0.0,
                                     "a guess")
        table = CostTable((PhaseCost("cost", 0, self.cost, np.zeros_like(self.cost)),))
        return SearchProblem(space, table, self.budget, profile, 1, None, seed, trials)


class OrdinalSearch:
    """Search of an ordinal problem by ``ask`` and ``tell``.

    Args:
        problem: Units, levels, costs and budget.
        searcher: Class of the search method, or another function that makes it from a ``SearchProblem``.
        seed: Seed of its random streams: the same seed and values give the same choices.
        evaluations: How many are planned; methods of several stages divide them.
        **options: Options of ``searcher``.
    """

    def __init__(self, problem: OrdinalProblem, searcher: Callable[..., Searcher] = StructuredSearch, seed: int = 0,
                 evaluations: int = 40, **options: Any) -> None:
        self._problem = problem.problem(seed, float(evaluations))
        self._searcher = searcher(self._problem, **options)
        self._asked: dict[Choice, Proposal] = {}
        self._trials: list[Trial] = []

    def ask(self, n: int = 1) -> list[Choice]:
        """Return up to ``n`` new choices within the budget; none when the method has come to its end."""
        found = {self._choice(p.allocation): p for p in self._searcher.ask(n)}
        self._asked.update(found)
        return list(found)

    def tell(self, choice: Choice, value: float | None) -> None:
        """Learn the objective of a choice, asked for or not; it failed where that is ``None`` or not finite."""
        value = None if value is None or not math.isfinite(value) else value
        space = self._problem.space
        row = np.array([*choice[0], *choice[1]])
        allocation = space.decode(row)
        proposal = self._asked.get(choice, Proposal(allocation, Fidelity.HIGH, "given"))
        state = TrialState.OK if value is not None else TrialState.FAILED
        self._trials.append(Trial(
            len(self._trials) + 1, allocation, space.bits(allocation), proposal.stage, proposal.fidelity,
            TrialSpec(allocation, 1, 1, 0, 1.0), self._problem.seed,
            TrialResult(state, value, None, (), 1, 0, 0, None, 0.0), int(self._problem.costs.totals(row[None, :])[0])))
        self._searcher.tell(self._trials[-1:])

    @property
    def best(self) -> tuple[Choice, float] | None:
        """The choice with the least value so far, and that value."""
        known = [(trial.loss, i) for i, trial in enumerate(self._trials) if trial.loss is not None]
        if not known:
            return None
        value, i = min(known)
        return self._choice(self._trials[i].allocation), float(value)

    def _choice(self, allocation: Allocation) -> Choice:
        row, n = self._problem.space.encode(allocation), self._problem.space.n_units
        return tuple(int(i) for i in row[:n]), tuple(int(i) for i in row[n:])


def minimise(problem: OrdinalProblem, objective: Callable[[Choice], float | None], evaluations: int,
             first: Sequence[Choice] = (), **search: Any) -> tuple[Choice, float] | None:
    """Return the best of ``evaluations`` choices and its value; those in ``first`` come first, then one at a time.

    Args:
        problem: Units, levels, costs and budget.
        objective: Value of a choice, lower is better; ``None`` or a value that is not finite where it failed.
        evaluations: How often ``objective`` is called at most.
        first: Choices to begin with, such as the one in use now; each must fit.
        **search: For ``OrdinalSearch``: ``searcher``, ``seed`` and options of the searcher.
    """
    searcher = OrdinalSearch(problem, evaluations=evaluations, **search)
    todo = list(first)
    for _ in range(evaluations):
        todo = todo or searcher.ask(1)
        if not todo:
            break
        choice = todo.pop(0)
        searcher.tell(choice, objective(choice))
    return searcher.best
