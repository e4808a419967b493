"""A fast, nearly optimal allocation of an additive objective: Lagrangian relaxation, then small changes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qra_bo.space.cost import CostTable
from qra_bo.space.knapsack import flatten, solve_knapsack
from qra_bo.space.space import FloatArray, IntArray

_BISECTIONS = 40
_ROUNDS = 4
_MOST_CHANGES = 400
_MOST_SIDE = 600  # changes that give bytes up, and that take them, among which exchanges are sought
_LEAST_GAIN = 1e-12
_REL_GAP = 1e-2
_LEAST_WEIGHT = 1e-300  # of a phase: it may bind again


@dataclass(frozen=True)
class Region:
    """Allocations that differ from ``centre`` in the choice (format, rank or both) of at most ``changes`` units."""

    centre: IntArray
    changes: int


def solve_relaxed(values: FloatArray, costs: CostTable, budget_bytes: int, region: Region | None = None) -> IntArray:
    """Return a row (``2 L``) that fits and nearly minimises ``sum_u values[u, q_u, r_u]``, in milliseconds.

    For posterior samples, which are random anyway; ``solve_knapsack`` is exact. Bytes are priced by phase (several
    phases: those that bind, reweighted in turn), the least price that fits is bisected, and the rest of the budget is
    spent on the best changes of single units and exchanges between two. The centre of a region must itself fit.
    Raises ``BudgetError`` if nothing fits.
    """
    solver = _Relaxation(values, costs, budget_bytes, region)
    start = solver.start()
    if start is None:  # spikes are priced by their share, which misses what fits where a few units have a large one
        return solve_knapsack(values, costs, budget_bytes, rel_gap=_REL_GAP)
    return solver.improve(start)


class _Relaxation:
    """One problem with options flattened to ``L x (F R)``; a choice is an option of every unit, ``L``."""

    def __init__(self, values: FloatArray, costs: CostTable, budget: int, region: Region | None) -> None:
        self._n_units, _, self._n_ranks = values.shape
        self._units = np.arange(self._n_units)
        self._values = values.reshape(self._n_units, -1)
        self._sizes = np.stack([p.unit.reshape(self._n_units, -1) for p in costs.phases])
        self._spikes = np.stack([p.spike.reshape(self._n_units, -1) for p in costs.phases])
        self._room = np.array([budget - p.fixed for p in costs.phases], dtype=np.int64)
        self._bounded = region is not None
        # Options of a unit that none beats in both value and bytes (of the phases together).
        total = self._sizes.sum(axis=0)
        order = np.lexsort((self._values, total), axis=1)
        ranked = np.take_along_axis(self._values, order, axis=1)
        best = np.minimum.accumulate(np.hstack([np.full((self._n_units, 1), np.inf), ranked[:, :-1]]), axis=1)
        self._useful = np.zeros(self._values.shape, dtype=bool)
        np.put_along_axis(self._useful, order, ranked < best, axis=1)
        self._changes = self._n_units if region is None else region.changes
        self._home = np.full(self._n_units, -1) if region is None else flatten(region.centre, self._n_ranks)

    def start(self) -> IntArray | None:
        """The best feasible choice among those that are optimal for some price of bytes, else the centre of the region;
        ``None`` if none is feasible."""
        weights = np.full(len(self._room), 1.0 / len(self._room))
        best: IntArray | None = None
        for _ in range(_ROUNDS if len(weights) > 1 else 1):
            prices = weights / np.maximum(self._room, 1)
            sizes = np.einsum("p,plo->lo", prices, self._sizes + self._spikes / self._n_units)
            found = self._bisect(sizes)
            if found is not None and (best is None or self._value(found) < self._value(best)):
                best = found
            tight = found if found is not None else self._priced(sizes, np.inf)
            share = self._used(tight) / np.maximum(self._room, 1)
            weights = np.maximum(weights * np.exp(4.0 * (share - share.max()) / 0.1), _LEAST_WEIGHT)
            weights /= weights.sum()
        return self._home if best is None and self._bounded and self._fits(self._home) else best

    def improve(self, choice: IntArray) -> IntArray:
        """Change one unit, or exchange bytes between two, while that lowers the value and fits; the row, ``2 L``."""
        choice = choice.copy()
        for _ in range(_MOST_CHANGES):
            gain = self._values[self._units, choice][:, None] - self._values
            gain[~self._admitted(choice)] = 0.0
            unit, option = divmod(int(np.argmax(gain)), gain.shape[1])
            moves = [(unit, option)] if gain[unit, option] > _LEAST_GAIN else self._exchange(choice)
            if not moves:
                break
            for unit, option in moves:
                choice[unit] = option
        return np.concatenate([choice // self._n_ranks, choice % self._n_ranks]).astype(np.int64)

    def _exchange(self, choice: IntArray) -> list[tuple[int, int]]:
        """The best pair of changes of two units that fits: one gives bytes up, the other takes them."""
        units, options = np.nonzero(self._useful)
        gain = self._values[units, choice[units]] - self._values[units, options]
        peaks = self._spikes[:, self._units, choice].max(axis=1)
        used = self._sizes[:, self._units, choice].sum(axis=1)
        extra = self._sizes[:, units, options] - self._sizes[:, units, choice[units]]
        moved = options != choice[units]
        if self._bounded:  # only units that have changed already, or are changed back, so that none is added
            moved &= (choice != self._home)[units] | (options == self._home[units])
        saved = -(extra / np.maximum(self._room, 1)[:, None]).sum(axis=0)
        giving, taking = np.flatnonzero(moved & (extra <= 0).all(axis=0)), np.flatnonzero(moved & (gain > 0))
        giving = giving[np.argsort(-gain[giving] / np.maximum(saved[giving], 1e-300), kind="stable")[:_MOST_SIDE]]
        taking = taking[np.argsort(-gain[taking] / np.maximum(-saved[taking], 1e-300), kind="stable")[:_MOST_SIDE]]
        pairs = gain[giving][:, None] + gain[taking][None, :]
        fits = units[giving][:, None] != units[taking][None, :]
        for p, room in enumerate(self._room):
            spike = self._spikes[p][units, options]
            peak = np.maximum(peaks[p], np.maximum(spike[giving][:, None], spike[taking][None, :]))
            fits &= used[p] + extra[p][giving][:, None] + extra[p][taking][None, :] + peak <= room
        pairs[~fits] = 0.0
        if pairs.size == 0 or pairs.max() <= _LEAST_GAIN:
            return []
        first, second = divmod(int(np.argmax(pairs)), pairs.shape[1])
        return [(int(units[i]), int(options[i])) for i in (giving[first], taking[second])]

    def _bisect(self, sizes: FloatArray) -> IntArray | None:
        """The choice of the least price at which it fits."""
        scale = float(np.ptp(self._values)) / max(float(np.ptp(sizes, axis=1).max()), 1e-300)
        low, high = 1e-6 * scale, 1e6 * scale
        free, dear = self._priced(sizes, 0.0), self._priced(sizes, np.inf)
        if self._fits(free):
            return free
        found = dear if self._fits(dear) else None
        for _ in range(_BISECTIONS):
            price = float(np.sqrt(low * high))
            choice = self._priced(sizes, price)
            if self._fits(choice):
                high, found = price, choice
            else:
                low = price
        return found

    def _priced(self, sizes: FloatArray, price: float) -> IntArray:
        """The optimum of value plus price times size; within a region the most rewarding changes are made."""
        total = sizes if np.isinf(price) else self._values + price * sizes
        choice = total.argmin(axis=1)
        if self._bounded:
            reward = total[self._units, self._home] - total[self._units, choice]
            stay = np.argsort(-reward, kind="stable")[self._changes:]
            choice[stay] = self._home[stay]
        return np.asarray(choice, dtype=np.int64)

    def _admitted(self, choice: IntArray) -> npt.NDArray[np.bool_]:
        """Single changes that fit (and stay within the region), ``L x (F R)``."""
        admitted = np.ones(self._values.shape, dtype=bool)
        for size, spike, room in zip(self._sizes, self._spikes, self._room, strict=True):
            own, peaks = size[self._units, choice], spike[self._units, choice]
            order = np.argsort(-peaks, kind="stable")
            others = np.full(self._n_units, peaks[order[0]])
            others[order[0]] = peaks[order[1]] if self._n_units > 1 else 0
            admitted &= (own.sum() - own)[:, None] + size + np.maximum(others[:, None], spike) <= room
        changed = choice != self._home
        if self._bounded and changed.sum() >= self._changes:
            admitted[~changed] = False
        return admitted

    def _used(self, choice: IntArray) -> IntArray:
        """Bytes of every phase."""
        chosen = np.s_[:, self._units, choice]
        return np.asarray(self._sizes[chosen].sum(axis=1) + self._spikes[chosen].max(axis=1))

    def _fits(self, choice: IntArray) -> bool:
        return bool((self._used(choice) <= self._room).all())

    def _value(self, choice: IntArray) -> float:
        return float(self._values[self._units, choice].sum())
