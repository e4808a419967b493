"""Eqs. 4-5: lower an allocation step by step, least important bytes first, until it fits the budget."""

import heapq
from typing import NamedTuple

import numpy as np

from qra_bo.errors import BudgetError, SpaceError
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import CostTable, IntArray

EPS = 1e-8
"""Added to every importance, so that among unimportant units the bytes saved decide."""

_Table = list[list[list[int]]]
_Key = tuple[bool, float, int]
"""Order of edits: those that save bytes first, then by score, then by coordinate (formats before ranks)."""


class Repair:
    """Applies, while the allocation does not fit, the downgrade with the least (importance + eps) / (bytes saved).

    Bytes saved are counted in the phase that binds (the first of the largest). Where no edit saves bytes there
    (e.g. several units share the largest spike), the least important one is applied. An edit's score depends on its
    own unit alone as long as the binding phase, its largest spike and that spike's only owner stay what they are:
    until then a heap of scores needs two updates an edit; when they change it is built anew.

    Args:
        costs: Memory of every allocation.
        budget_bytes: Hard limit.
        importance_q: I_q, ``L``, min-max scaled.
        importance_r: I_r, ``L``, min-max scaled.

    Raises:
        SpaceError: If an importance has the wrong shape, is negative or not finite.
    """

    def __init__(self, costs: CostTable, budget_bytes: int, importance_q: FloatArray,
                 importance_r: FloatArray) -> None:
        self._weights = edit_weights(costs, importance_q, importance_r).tolist()
        self._costs, self._budget = costs, budget_bytes
        self._fixed = [p.fixed for p in costs.phases]
        # Plain lists: reading one number of an array costs ten times as much.
        self._unit = [p.unit.tolist() for p in costs.phases]
        self._spike = [p.spike.tolist() for p in costs.phases]

    def __call__(self, row: IntArray, keep: frozenset[int] = frozenset()) -> IntArray:
        """The repaired row, ``2 L``; ``row`` itself, copied, if it fits.

        Args:
            row: Index row, ``2 L``.
            keep: Coordinates that are not to be lowered.

        Raises:
            BudgetError: If it does not fit and nothing can be lowered any more.
        """
        state = _State(row, self._fixed, self._unit, self._spike)
        n_units, movable = state.n_units, [i for i in range(len(row)) if i not in keep]
        regime: _Regime | None = None
        heap: list[tuple[_Key, int]] = []
        stamps = [0] * len(row)
        while max(state.totals) > self._budget:
            if regime != (regime := state.regime()):
                heap = [(self._key(state, i, regime), stamps[i]) for i in movable if state.row[i] > 0]
                heapq.heapify(heap)
            while heap and heap[0][1] != stamps[heap[0][0][2]]:
                heapq.heappop(heap)
            if not heap:
                raise BudgetError(f"the allocation needs {max(state.totals)} bytes, more than the budget of "
                                  f"{self._budget}, and nothing of it can be lowered any more; raise the budget, or "
                                  "admit lower bits or ranks")
            coordinate = heap[0][0][2]
            state.lower(coordinate)
            unit = coordinate % n_units
            for i in (unit, unit + n_units):
                stamps[i] += 1
                if state.row[i] > 0 and i not in keep:
                    heapq.heappush(heap, (self._key(state, i, regime), stamps[i]))
        return np.array(state.row, dtype=np.int64)

    def _key(self, state: "_State", coordinate: int, regime: "_Regime") -> _Key:
        saved = state.saved(coordinate, regime)
        weight: float = self._weights[coordinate]
        return (False, weight / saved, coordinate) if saved > 0 else (True, weight, coordinate)


def edit_weights(costs: CostTable, importance_q: FloatArray, importance_r: FloatArray) -> FloatArray:
    """I_t(l) + eps of the downgrade of every coordinate, ``2 L``.

    Raises:
        SpaceError: If an importance has the wrong shape, is negative or not finite.
    """
    both = np.concatenate([importance_q, importance_r])
    if importance_q.shape != (costs.shape[0],) or importance_r.shape != (costs.shape[0],) \
            or not np.isfinite(both).all() or (both < 0).any():
        raise SpaceError(f"importances must be finite, at least 0 and of shape ({costs.shape[0]},); got shapes "
                         f"{importance_q.shape} and {importance_r.shape}")
    weights: FloatArray = both + EPS
    return weights


class _Regime(NamedTuple):
    """What the scores of all edits share: the binding phase, its largest spike, that spike's only owner (-1 where
    several units share it), and the largest spike of all other units."""

    phase: int
    peak: int
    owner: int
    others: int


def _regime(phase: int, spikes: list[int]) -> _Regime:
    peak = max(spikes)
    if spikes.count(peak) > 1:
        return _Regime(phase, peak, -1, peak)
    owner = spikes.index(peak)
    return _Regime(phase, peak, owner, max(spikes[:owner] + spikes[owner + 1:], default=0))


class _State:
    """A row and the bytes of its phases, kept up to date edit by edit."""

    def __init__(self, row: IntArray, fixed: list[int], unit: list[_Table], spike: list[_Table]) -> None:
        self.row: list[int] = row.tolist()
        self.n_units = len(self.row) // 2
        self._unit, self._spike = unit, spike
        cells = [(u, self.row[u], self.row[u + self.n_units]) for u in range(self.n_units)]
        self._sums = [f + sum(table[u][q][r] for u, q, r in cells) for f, table in zip(fixed, unit, strict=True)]
        self._spikes = [[table[u][q][r] for u, q, r in cells] for table in spike]
        self._regimes = [_regime(p, spikes) for p, spikes in enumerate(self._spikes)]
        self.totals = [s + regime.peak for s, regime in zip(self._sums, self._regimes, strict=True)]

    def regime(self) -> _Regime:
        """That of the binding phase."""
        return self._regimes[self.totals.index(max(self.totals))]

    def saved(self, coordinate: int, regime: _Regime) -> int:
        """Bytes that lowering ``coordinate`` by one step saves in the binding phase."""
        unit, q, r = self._cell(coordinate)
        new_q, new_r = (q - 1, r) if coordinate < self.n_units else (q, r - 1)
        table = self._unit[regime.phase][unit]
        others = regime.others if unit == regime.owner else regime.peak
        peak = max(others, self._spike[regime.phase][unit][new_q][new_r])
        return table[q][r] - table[new_q][new_r] + regime.peak - peak

    def lower(self, coordinate: int) -> None:
        unit, q, r = self._cell(coordinate)
        self.row[coordinate] -= 1
        _, new_q, new_r = self._cell(coordinate)
        for p, table in enumerate(self._unit):
            self._sums[p] += table[unit][new_q][new_r] - table[unit][q][r]
            regime, old, new = self._regimes[p], self._spikes[p][unit], self._spike[p][unit][new_q][new_r]
            self._spikes[p][unit] = new
            # A spike below those of all other units changes none of the three numbers.
            if max(old, new) >= regime.others and old != new:
                self._regimes[p] = _regime(p, self._spikes[p])
            self.totals[p] = self._sums[p] + self._regimes[p].peak

    def _cell(self, coordinate: int) -> tuple[int, int, int]:
        unit = coordinate % self.n_units
        return unit, self.row[unit], self.row[unit + self.n_units]
