"""A fast, nearly optimal allocation of an additive objective: Lagrangian relaxation, then single-unit improvements."""

import numpy as np
import numpy.typing as npt

from qra_bo.errors import BudgetError
from qra_bo.space.cost import CostTable
from qra_bo.space.knapsack import FloatArray, Region
from qra_bo.space.space import IntArray

_BISECTIONS = 40
_ROUNDS = 4


def solve_relaxed(values: FloatArray, costs: CostTable, budget_bytes: int, region: Region | None = None) -> IntArray:
    """Row (``2 L``) that fits and nearly minimises ``sum_u values[u, q_u, r_u]``, in milliseconds.

    For draws from a posterior, which are random anyway; ``solve_knapsack`` is exact. Bytes are priced by phase
    (several phases: those that bind, reweighted in turn), the least price that fits is bisected, and what is
    left of the budget goes to the best changes of single units.

    Args:
        values: ``L x F x R``.
        costs: Memory of every allocation.
        budget_bytes: Hard limit.
        region: Restricts the search to allocations near a centre, which must itself fit.

    Raises:
        BudgetError: If nothing fits, or nothing that the relaxation reaches.
    """
    solver = _Relaxation(values, costs, budget_bytes, region)
    return solver.improve(solver.start())


class _Relaxation:
    """One problem with options flattened to ``L x (F R)``; a choice is an option of every unit, ``L``."""

    def __init__(self, values: FloatArray, costs: CostTable, budget: int, region: Region | None) -> None:
        self._n_units, _, self._n_ranks = values.shape
        self._units = np.arange(self._n_units)
        self._values = values.reshape(self._n_units, -1)
        self._sizes = np.stack([p.unit.reshape(self._n_units, -1) for p in costs.phases])
        self._spikes = np.stack([p.spike.reshape(self._n_units, -1) for p in costs.phases])
        self._room = np.array([budget - p.fixed for p in costs.phases], dtype=np.int64)
        self._budget, self._region = budget, region
        self._home = None if region is None else \
            region.centre[: self._n_units] * self._n_ranks + region.centre[self._n_units:]

    def start(self) -> IntArray:
        """The best feasible choice among those that are optimal for some price of bytes.

        Raises:
            BudgetError: If none is feasible.
        """
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
            weights = weights * np.exp(4.0 * (share - share.max()) / 0.1)
            weights /= weights.sum()
        if best is None:
            if self._home is not None and (self._used(self._home) <= self._room).all():
                return np.array(self._home, dtype=np.int64)
            raise BudgetError(f"no allocation of the space was found to fit into {self._budget} bytes; "
                              "raise the budget, or admit lower bits or ranks")
        return best

    def improve(self, choice: IntArray) -> IntArray:
        """Change one unit at a time while that lowers the value and fits; the resulting row, ``2 L``."""
        choice = choice.copy()
        while True:
            gain = self._values[self._units, choice][:, None] - self._values
            gain[~self._admitted(choice)] = 0.0
            best = int(np.argmax(gain))
            unit, option = divmod(best, gain.shape[1])
            if gain[unit, option] <= 1e-12:
                return np.concatenate([choice // self._n_ranks, choice % self._n_ranks]).astype(np.int64)
            choice[unit] = option

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
        if self._home is not None and self._region is not None:
            reward = total[self._units, self._home] - total[self._units, choice]
            stay = np.argsort(-reward, kind="stable")[self._region.changes:]
            choice[stay] = self._home[stay]
        priced: IntArray = choice.astype(np.int64)
        return priced

    def _admitted(self, choice: IntArray) -> npt.NDArray[np.bool_]:
        """Single changes that fit (and stay within the region), ``L x (F R)``."""
        admitted = np.ones(self._values.shape, dtype=bool)
        for size, spike, room in zip(self._sizes, self._spikes, self._room, strict=True):
            own, peaks = size[self._units, choice], spike[self._units, choice]
            order = np.argsort(-peaks, kind="stable")
            others = np.full(self._n_units, peaks[order[0]])
            others[order[0]] = peaks[order[1]] if self._n_units > 1 else 0
            admitted &= (own.sum() - own)[:, None] + size + np.maximum(others[:, None], spike) <= room
        if self._home is not None and self._region is not None:
            changed = choice != self._home
            if changed.sum() >= self._region.changes:
                admitted[~changed] = False
        return admitted

    def _used(self, choice: IntArray) -> IntArray:
        """Bytes of every phase."""
        used: IntArray = (self._sizes[:, self._units, choice].sum(axis=1)
                          + self._spikes[:, self._units, choice].max(axis=1))
        return used

    def _fits(self, choice: IntArray) -> bool:
        return bool((self._used(choice) <= self._room).all())

    def _value(self, choice: IntArray) -> float:
        return float(self._values[self._units, choice].sum())
