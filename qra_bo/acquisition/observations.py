"""What a searcher has been told, as arrays: pooled repeats, aligned training seeds, rows not to be asked again."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from qra_bo.records import Evaluation, Fidelity, TrialState
from qra_bo.searcher import SearchProblem
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import Allocation, IntArray

Row = tuple[int, ...]


class Observations:
    """High-fidelity evaluations of one problem.

    What doesn't bear on the search is left out: other splits, other learning rates, other fidelities, formats
    off the ladder and ranks outside it. A rank between two of the ladder gets a fractional position (in the
    logarithm of the rank), so that uniform anchors of any integer rank inform the model.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._losses: dict[Allocation, dict[int, list[float]]] = {}
        self._positions: dict[Allocation, FloatArray] = {}
        self._diverged: dict[Allocation, FloatArray] = {}
        self._primary: int | None = None
        self.tried: set[Row] = set()
        self.pending: dict[Row, None] = {}

    def propose(self, row: IntArray) -> Allocation:
        """Note that ``row`` (``2 L``) is being asked for."""
        self.tried.add(_key(row))
        self.pending[_key(row)] = None
        return self._problem.space.decode(row)

    def tell(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Take in evaluations and return those that were new and bear on the search."""
        return [e for e in evaluations if self._take(e)]

    def arrays(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Distinct rows (``n x 2 L``, rank positions may be fractional), mean losses and repeats (each ``n``).

        Losses of other training seeds are shifted by their mean difference from the first seed over shared
        allocations, and left out where none is shared. Diverged runs count as the worst loss seen.
        """
        shifts = self._shifts()
        rows, losses, counts = [], [], []
        for allocation, by_seed in self._losses.items():
            values = [v - shifts[seed] for seed, all_values in by_seed.items() if seed in shifts for v in all_values]
            if values:
                rows.append(self._positions[allocation])
                losses.append(float(np.mean(values)))
                counts.append(float(len(values)))
        if losses:
            worst = max(losses)
            for allocation, position in self._diverged.items():
                if allocation not in self._losses:
                    rows.append(position)
                    losses.append(worst)
                    counts.append(1.0)
        width = 2 * self._problem.space.n_units
        return np.array(rows).reshape(-1, width), np.array(losses), np.array(counts)

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

    def _take(self, evaluation: Evaluation) -> bool:
        position = self.position(evaluation.allocation)
        request = evaluation.request
        if position is None or evaluation.fidelity is not Fidelity.HIGH or request.split != "validation" \
                or request.lr_scale != 1.0:
            return False
        if (position == np.floor(position)).all():
            self.pending.pop(_key(position), None)
            self.tried.add(_key(position))
        if evaluation.measurement.state is TrialState.DIVERGED:
            self._diverged[evaluation.allocation] = position
            return True
        if evaluation.loss is None or not np.isfinite(evaluation.loss):
            return True
        if self._primary is None:
            self._primary = request.train_seed
        self._positions[evaluation.allocation] = position
        self._losses.setdefault(evaluation.allocation, {}).setdefault(request.train_seed, []).append(evaluation.loss)
        return True

    def _shifts(self) -> dict[int, float]:
        """Level of every training seed relative to the first one's."""
        differences: dict[int, list[float]] = defaultdict(list)
        for by_seed in self._losses.values():
            if self._primary in by_seed:
                for seed, values in by_seed.items():
                    differences[seed].append(float(np.mean(values) - np.mean(by_seed[self._primary])))
        return {seed: float(np.mean(values)) for seed, values in differences.items()}


def row_of(rows: IntArray, index: int) -> IntArray:
    """Row ``index`` (``2 L``) of ``n x 2 L``."""
    row: IntArray = rows[index]
    return row


def _key(row: IntArray | FloatArray) -> Row:
    return tuple(int(v) for v in row)
