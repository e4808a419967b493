"""What the model-based searchers share: observations as arrays, the trust region (Eq. 11), and their base class."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from qra_bo.searchers.base import SearchProblem
from qra_bo.space import Allocation, FloatArray, IntArray
from qra_bo.trials import Fidelity, Proposal, Trial, TrialState
from qra_bo.utils.errors import BudgetError

Row = tuple[int, ...]
STREAK = 3
"""Failures in a row that shrink a trust region."""


class Observations:
    """High-fidelity trials of one problem.

    Left out are trials on other splits, at other learning rates or fidelities, with another training seed than the
    first (a seed moves all losses together), and those with formats off the ladder or ranks outside it. A rank between
    two of the ladder gets a fractional position (in the logarithm of the rank), so that uniform baselines of any
    integer rank inform the model.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._known: dict[Allocation, tuple[FloatArray, list[float]]] = {}  # no losses: it diverged
        self._train_seed: int | None = None
        self._tried: set[Row] = set()
        self._pending: dict[Row, None] = {}

    @property
    def tried(self) -> IntArray:
        """Rows that were proposed or observed, ``m x 2 L``."""
        return self._matrix(self._tried)

    @property
    def pending(self) -> IntArray:
        """Rows that were proposed and not observed yet, ``m x 2 L``."""
        return self._matrix(self._pending)

    def fresh(self, rows: IntArray) -> IntArray:
        """Return those of ``m x 2 L`` rows that were not tried."""
        return rows[[tuple(row) not in self._tried for row in rows.tolist()]]

    def admissible(self, rows: FloatArray) -> npt.NDArray[np.bool_]:
        """Return which of ``n x 2 L`` rows are on the ladders and within the budget, ``n``."""
        found = np.asarray((rows == np.floor(rows)).all(axis=1))
        found[found] = self._problem.costs.feasible(rows[found].astype(np.int64), self._problem.budget_bytes)
        return found

    def propose(self, row: IntArray) -> Allocation:
        """Note ``row`` (``2 L``) as pending and return its allocation."""
        self._tried.add(_key(row))
        self._pending[_key(row)] = None
        return self._problem.space.decode(row)

    def tell(self, trials: Sequence[Trial]) -> list[Trial]:
        """Take in trials and return those that are not left out."""
        return [trial for trial in trials if self._take(trial)]

    def arrays(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return distinct rows (``n x 2 L``, rank positions may be fractional), mean losses and repeats (``n`` each).

        A diverged trial counts as the worst loss seen.
        """
        known = sorted(self._known.values(), key=lambda found: not found[1])  # those that diverged come last
        means = [float(np.mean(losses)) for _, losses in known if losses]
        known = known if means else []
        return (np.array([row for row, _ in known]).reshape(-1, 2 * self._problem.space.n_units),
                np.array(means + [max(means, default=0.0)] * (len(known) - len(means))),
                np.array([float(max(len(losses), 1)) for _, losses in known]))

    def position(self, allocation: Allocation) -> FloatArray | None:
        """Return the ladder positions, ``2 L``; ``None`` where a format or rank lies outside the ladders."""
        space = self._problem.space
        ladder = np.array(space.ranks, dtype=np.float64)
        ranks = np.array(allocation.ranks, dtype=np.float64)
        if len(allocation) != space.n_units or any(f not in space.format_index for f in allocation.formats) \
                or ranks.min() < ladder[0] or ranks.max() > ladder[-1]:
            return None
        formats = [float(space.format_index[f]) for f in allocation.formats]
        return np.concatenate([formats, np.interp(np.log(ranks), np.log(ladder), np.arange(len(ladder)))])

    def _take(self, trial: Trial) -> bool:
        allocation, spec = trial.allocation, trial.spec
        position = self.position(allocation)
        if position is None or trial.fidelity is not Fidelity.HIGH or spec.split != "validation":
            return False
        if (position == np.floor(position)).all():
            self._pending.pop(_key(position), None)
            self._tried.add(_key(position))
        if trial.result.state is TrialState.DIVERGED:
            self._known.setdefault(allocation, (position, []))
            return True
        if trial.loss is None or not np.isfinite(trial.loss):
            return True
        self._train_seed = spec.train_seed if self._train_seed is None else self._train_seed
        if spec.train_seed != self._train_seed:
            return False
        self._known.setdefault(allocation, (position, []))[1].append(trial.loss)
        return True

    def _matrix(self, rows: "set[Row] | dict[Row, None]") -> IntArray:
        return np.array(list(rows), dtype=np.int64).reshape(-1, 2 * self._problem.space.n_units)


class ObservingSearcher(ABC):
    """Base of searchers of high fidelity that propose one row at a time."""

    name = ""
    stage = ""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem, self._rng = problem, problem.rng(self.name)
        self._seen = Observations(problem)

    def ask(self, n: int) -> list[Proposal]:
        """Return up to ``n`` proposals; fewer once all that fits was tried, or the method has converged. Raises
        ``BudgetError`` if nothing fits into the budget."""
        proposals: list[Proposal] = []
        while len(proposals) < n and (row := self._next()) is not None:
            proposals.append(Proposal(self._seen.propose(row), Fidelity.HIGH, self.stage))
        return proposals

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn of finished trials."""
        self._seen.tell(trials)

    @abstractmethod
    def _next(self) -> IntArray | None:
        """Return the next row to propose, ``2 L``, or ``None``."""

    def _known(self) -> tuple[IntArray, FloatArray]:
        """Return rows on the ladders that fit (``n x 2 L``) and their losses (``n``)."""
        rows, losses, _ = self._seen.arrays()
        fits = self._seen.admissible(rows)
        return rows[fits].astype(np.int64), losses[fits]

    def _first_new(self, rows: Iterable[IntArray]) -> IntArray | None:
        """Return the first of these rows (``2 L``) that was not tried."""
        return next((row for row in rows if len(self._seen.fresh(row[None]))), None)

    def _solve(self, table: FloatArray, rel_gap: float, forbid: bool = True) -> IntArray | None:
        """Solve an additive ``L x F x R`` table; with ``forbid``, ``None`` once everything that fits was tried."""
        from qra_bo.space.knapsack import solve_knapsack  # loads scipy, which planning memory does without
        tried = self._seen.tried if forbid else None
        try:
            return solve_knapsack(table, self._problem.costs, self._problem.budget_bytes, forbid=tried, rel_gap=rel_gap)
        except BudgetError:
            if tried is not None and len(tried):
                return None
            raise


def _key(row: IntArray | FloatArray) -> Row:
    return tuple(int(v) for v in row)


class TrustRegion:
    """Edits from the centre that are admitted: more after a success, fewer after ``STREAK`` failures in a row, and the
    first number again where none would be left.

    Args:
        start: The first radius.
        largest: Cap of the radius.
        smallest: Below this radius the region starts anew.
        factor: Growth and shrinkage (at least one edit either way).
    """

    def __init__(self, start: int, largest: int, smallest: int = 1, factor: float = 2.0) -> None:
        self.radius, self.largest = start, largest
        self._start, self._smallest, self._factor, self._failures = start, smallest, factor, 0

    def update(self, improved: bool) -> None:
        """Learn of one more trial of a proposal from this region."""
        self._failures = 0 if improved else self._failures + 1
        if improved:
            self.radius = min(max(self.radius + 1, int(self.radius * self._factor)), self.largest)
        elif self._failures == STREAK:
            shrunk = min(self.radius - 1, int(self.radius / self._factor))
            self.radius, self._failures = self._start if shrunk < self._smallest else shrunk, 0
