"""Eqs. 4-5: lower an allocation step by step, least important bytes first, until it fits the budget."""

import heapq
from typing import NamedTuple

import numpy as np

from qra_bo.space import CostTable, FloatArray, IntArray, PhaseCost
from qra_bo.utils.errors import BudgetError, SpaceError

EPS = 1e-8
"""Added to every importance, so that among unimportant units the bytes saved decide."""


class Repair:
    """Applies, while the allocation does not fit, the downgrade with the least (importance + eps) / (bytes saved).

    Bytes saved are counted in the phase that binds (the first of the largest). Where no edit saves bytes there
    (e.g. several units share the largest spike), the least important one is applied.

    The score of an edit depends on its own unit alone as long as the binding phase and its largest spike stay: within
    such a regime a heap of scored edits suffices, and only the edits of the unit that changed are added to it. Raises
    ``SpaceError`` if an importance has the wrong shape, is negative or not finite.

    Args:
        importance_q: I_q, ``L``, min-max scaled.
        importance_r: I_r, ``L``, min-max scaled.
    """

    def __init__(self, costs: CostTable, budget_bytes: int, importance_q: FloatArray, importance_r: FloatArray) -> None:
        self._weights: list[float] = edit_weights(costs, importance_q, importance_r).tolist()
        self._budget, self._shape = budget_bytes, costs.shape
        self._phases = [_Phase(p, self._weights) for p in costs.phases]

    def __call__(self, row: IntArray, keep: frozenset[int] = frozenset()) -> IntArray:
        """The repaired row, ``2 L``; ``row`` itself, copied, if it fits.

        Raises ``BudgetError`` if it does not fit and nothing can be lowered any more.

        Args:
            row: Index row, ``2 L``.
            keep: Coordinates that are not to be lowered.
        """
        n_units, n_formats, n_ranks = self._shape
        first = np.arange(n_units) * (n_formats * n_ranks)
        cells: list[int] = (first + row[:n_units] * n_ranks + row[n_units:]).tolist()
        spikes = [[p.spike[c] for c in cells] for p in self._phases]
        regimes = [_regime(i, s) for i, s in enumerate(spikes)]
        totals = [p.fixed + sum([p.unit[c] for c in cells]) + r.peak
                  for p, r in zip(self._phases, regimes, strict=True)]
        heaps: list[tuple[_Regime, list[_Edit], int] | None] = [None] * len(self._phases)
        changed: list[int] = []
        while (most := max(totals)) > self._budget:
            binding = totals.index(most)
            regime, known = regimes[binding], heaps[binding]
            if known is not None and known[0] is regime:
                heap, news = known[1], changed[known[2]:]
            else:
                heap, news = [], list(range(n_units))
            for unit in news:
                self._push(heap, regime, unit, cells[unit], keep)
            heaps[binding] = regime, heap, len(changed)
            while heap and cells[heap[0][2] % n_units] != heap[0][3]:
                heapq.heappop(heap)
            if not heap:
                raise BudgetError(f"the allocation needs {most} bytes, more than the budget of {self._budget}, and "
                                  "nothing of it can be lowered any more; raise the budget, or admit lower bits or "
                                  "ranks")
            _, _, coordinate, before = heapq.heappop(heap)
            unit = coordinate % n_units
            after = before - (n_ranks if coordinate < n_units else 1)
            cells[unit] = after
            changed.append(unit)
            for i, phase in enumerate(self._phases):
                totals[i] += phase.unit[after] - phase.unit[before]
                if phase.spike[after] != phase.spike[before]:
                    spikes[i][unit] = phase.spike[after]
                    if max(phase.spike[before], phase.spike[after]) >= regimes[i].others:
                        now = _regime(i, spikes[i])
                        totals[i] += now.peak - regimes[i].peak
                        regimes[i] = regimes[i] if now == regimes[i] else now
        options = np.array(cells, dtype=np.int64) - first
        return np.concatenate([options // n_ranks, options % n_ranks])

    def _push(self, heap: list["_Edit"], regime: "_Regime", unit: int, cell: int, keep: frozenset[int]) -> None:
        """Add the downgrades of one unit."""
        binding, peak, owner, others = regime
        phase = self._phases[binding]
        for edit, after in phase.downgrades[cell]:
            if unit == owner or phase.spike[after] > peak:  # it moves the largest spike
                coordinate, rest = edit[2], others if unit == owner else peak
                saved = phase.unit[cell] - phase.unit[after] + peak - max(rest, phase.spike[after])
                edit = _edit(saved, self._weights[coordinate], coordinate, cell)
            if edit[2] not in keep:
                heapq.heappush(heap, edit)


_Edit = tuple[bool, float, int, int]
"""A downgrade in its order: whether it saves no bytes, its score, its coordinate (formats before ranks), its cell."""


def _edit(saved: int, weight: float, coordinate: int, cell: int) -> _Edit:
    return (False, weight / saved, coordinate, cell) if saved > 0 else (True, weight, coordinate, cell)


def edit_weights(costs: CostTable, importance_q: FloatArray, importance_r: FloatArray) -> FloatArray:
    """I_t(l) + eps of the downgrade of every coordinate, ``2 L``. Raises ``SpaceError`` if an importance has the wrong
    shape, is negative or not finite."""
    both = np.concatenate([importance_q, importance_r])
    if importance_q.shape != (costs.shape[0],) or importance_r.shape != (costs.shape[0],) \
            or not np.isfinite(both).all() or (both < 0).any():
        raise SpaceError(f"importances must be finite, at least 0 and of shape ({costs.shape[0]},); got shapes "
                         f"{importance_q.shape} and {importance_r.shape}")
    return np.asarray(both + EPS)


class _Regime(NamedTuple):
    """What the scores of all edits share: the binding phase, its largest spike, the only unit that has it (-1 where
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


class _Phase:
    """Bytes of one phase by cell: a unit's format and rank, numbered ``(unit F + format) R + rank``.

    The tables are plain lists, because reading one number of an array costs ten times as much. ``downgrades`` holds
    the edits of a cell, scored as though none of them moved the largest spike, and the cells that they lead to.
    """

    def __init__(self, phase: PhaseCost, weights: list[float]) -> None:
        n_units, n_formats, n_ranks = phase.unit.shape
        self.fixed = phase.fixed
        self.unit: list[int] = phase.unit.reshape(-1).tolist()
        self.spike: list[int] = phase.spike.reshape(-1).tolist()
        self.downgrades: list[list[tuple[_Edit, int]]] = []
        for cell, size in enumerate(self.unit):
            unit, option = divmod(cell, n_formats * n_ranks)
            steps = [(unit, cell - n_ranks)] if option >= n_ranks else []
            steps += [(unit + n_units, cell - 1)] if option % n_ranks else []
            self.downgrades.append([(_edit(size - self.unit[after], weights[coordinate], coordinate, cell), after)
                                    for coordinate, after in steps])
