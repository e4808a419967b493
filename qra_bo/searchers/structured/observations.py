"""What a searcher has been told, as arrays: equal allocations pooled, rows not to be asked again."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import Allocation, IntArray
from qra_bo.trials import Fidelity, Trial, TrialState

Row = tuple[int, ...]


class Growing:
    """An array that rows are added to at the end, in constant time on average.

    Args:
        width: Columns of ``n x width``; ``None`` for a vector.
    """

    def __init__(self, width: int | None = None) -> None:
        self._room = np.empty((16,) if width is None else (16, width))
        self._n = 0

    @property
    def view(self) -> FloatArray:
        """What was added until now; it stays as it is when more is added."""
        return self._room[:self._n]

    def append(self, row: FloatArray | float) -> None:
        if self._n == len(self._room):
            self._room = np.concatenate([self._room, np.empty_like(self._room)])
        self._room[self._n] = row
        self._n += 1


class Observations:
    """High-fidelity evaluations of one problem.

    What doesn't bear on the search is left out: other splits, other learning rates, other fidelities, other
    training seeds than the first (a seed moves all losses together), formats off the ladder and ranks outside it. A
    rank between two of the ladder gets a fractional position (in the logarithm of the rank), so that uniform baselines of
    any integer rank inform the model.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._losses: dict[Allocation, list[float]] = {}
        self._positions: dict[Allocation, FloatArray] = {}
        self._diverged: dict[Allocation, FloatArray] = {}
        self._train_seed: int | None = None
        self._pooled: tuple[Growing, Growing, Growing] | None = None
        self.tried: set[Row] = set()
        self.pending: dict[Row, None] = {}

    def propose(self, row: IntArray) -> Allocation:
        """Note that ``row`` (``2 L``) is being asked for."""
        self.tried.add(_key(row))
        self.pending[_key(row)] = None
        return self._problem.space.decode(row)

    def tell(self, evaluations: Sequence[Trial]) -> list[Trial]:
        """Take in evaluations and return those that were new and bear on the search."""
        return [e for e in evaluations if self._take(e)]

    def arrays(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Distinct rows (``n x 2 L``, rank positions may be fractional), mean losses and how many each is of (``n``).

        Diverged runs count as the worst loss seen.
        """
        if self._pooled is None:
            self._pooled = self._pool()
        rows, losses, counts = (found.view for found in self._pooled)
        extra = [p for a, p in self._diverged.items() if a not in self._losses] if len(losses) else []
        if extra:
            rows = np.vstack([rows, *extra])
            losses = np.append(losses, np.full(len(extra), losses.max()))
            counts = np.append(counts, np.ones(len(extra)))
        return rows, losses, counts

    @property
    def size(self) -> int:
        """How many rows ``arrays`` gives."""
        return len(self.arrays()[1])

    def _pool(self) -> tuple[Growing, Growing, Growing]:
        """Rows, mean losses and their numbers of all that gave a loss."""
        found = Growing(2 * self._problem.space.n_units), Growing(), Growing()
        for allocation, losses in self._losses.items():
            _add(found, self._positions[allocation], float(np.mean(losses)), float(len(losses)))
        return found

    def position(self, allocation: Allocation) -> FloatArray | None:
        """Ladder positions, ``2 L``; ``None`` where a format or rank lies outside the ladders."""
        space = self._problem.space
        ladder = np.array(space.ranks.values, dtype=np.float64)
        ranks = np.array(allocation.ranks, dtype=np.float64)
        if len(allocation) != space.n_units or any(f not in space.format_index for f in allocation.formats) \
                or ranks.min() < ladder[0] or ranks.max() > ladder[-1]:
            return None
        formats = [float(space.format_index[f]) for f in allocation.formats]
        return np.concatenate([formats, np.interp(np.log(ranks), np.log(ladder), np.arange(len(ladder)))])

    def _take(self, evaluation: Trial) -> bool:
        position = self.position(evaluation.allocation)
        request = evaluation.spec
        if position is None or evaluation.fidelity is not Fidelity.HIGH or request.split != "validation" \
                or request.lr_scale != 1.0:
            return False
        if (position == np.floor(position)).all():
            self.pending.pop(_key(position), None)
            self.tried.add(_key(position))
        if evaluation.result.state is TrialState.DIVERGED:
            self._diverged[evaluation.allocation] = position
            return True
        if evaluation.loss is None or not np.isfinite(evaluation.loss):
            return True
        if self._train_seed is None:
            self._train_seed = request.train_seed
        if request.train_seed != self._train_seed:
            return False
        if evaluation.allocation in self._losses:
            self._pooled = None  # what was pooled changes
        elif self._pooled is not None:
            _add(self._pooled, position, evaluation.loss, 1.0)
        self._positions[evaluation.allocation] = position
        self._losses.setdefault(evaluation.allocation, []).append(evaluation.loss)
        return True


def telling(losses: FloatArray, most: int) -> npt.NDArray[np.intp]:
    """Indices of at most ``most`` of ``n`` losses, ascending: the lowest half of them, where the search goes on, and
    the others evenly over the rest, so that what a bad choice costs stays known."""
    if len(losses) <= most:
        return np.arange(len(losses))
    order = np.argsort(losses, kind="stable")
    lowest, rest = order[:most - most // 2], order[most - most // 2:]
    return np.sort(np.concatenate([lowest, rest[np.linspace(0, len(rest) - 1, most // 2).round().astype(np.intp)]]))


def row_of(rows: IntArray, index: int) -> IntArray:
    """Row ``index`` (``2 L``) of ``n x 2 L``."""
    row: IntArray = rows[index]
    return row


def _add(pooled: tuple[Growing, Growing, Growing], row: FloatArray, loss: float, count: float) -> None:
    rows, losses, counts = pooled
    rows.append(row)
    losses.append(loss)
    counts.append(count)


def _key(row: IntArray | FloatArray) -> Row:
    return tuple(int(v) for v in row)
