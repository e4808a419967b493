"""Eqs. 4-5: lower an allocation step by step, least important bytes first, until it fits the budget."""

import bisect
import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import CostTable, IntArray, PhaseCost
from qra_bo.utils.errors import BudgetError, SpaceError

EPS = 1e-8
"""Added to every importance, so that among unimportant units the bytes saved decide."""

_Key = tuple[bool, float, int]
"""Order of edits: those that save bytes first, then by score, then by coordinate (formats before ranks)."""


class Repair:
    """Applies, while the allocation does not fit, the downgrade with the least (importance + eps) / (bytes saved).

    Bytes saved are counted in the phase that binds (the first of the largest). Where no edit saves bytes there
    (e.g. several units share the largest spike), the least important one is applied.

    An edit's score depends on its own unit alone unless it moves the phase's largest spike. So the order of all
    edits is tabulated once for every phase, and a heap of places in that order is all that the loop needs; the few
    edits that do move the spike wait in a second heap, which is built anew when the spike changes.

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
        weights = edit_weights(costs, importance_q, importance_r)
        self._budget, self._shape = budget_bytes, costs.shape
        self._tables = [_Table(p, weights) for p in costs.phases]

    def __call__(self, row: IntArray, keep: frozenset[int] = frozenset()) -> IntArray:
        """The repaired row, ``2 L``; ``row`` itself, copied, if it fits.

        Args:
            row: Index row, ``2 L``.
            keep: Coordinates that are not to be lowered.

        Raises:
            BudgetError: If it does not fit and nothing can be lowered any more.
        """
        n_units, n_formats, n_ranks = self._shape
        first = np.arange(n_units) * (n_formats * n_ranks)
        state = _State((first + row[:n_units] * n_ranks + row[n_units:]).tolist(), self._tables)
        if max(state.totals) > self._budget:
            self._lower(state, keep)
        options = np.array(state.cells, dtype=np.int64) - first
        return np.concatenate([options // n_ranks, options % n_ranks])

    def _lower(self, state: "_State", keep: frozenset[int]) -> None:
        """Apply edits until the state fits."""
        queues: list[_Queue | None] = [None] * len(self._tables)
        changed: list[int] = []
        while (largest := max(state.totals)) > self._budget:
            regime = state.regimes[state.totals.index(largest)]
            queue = queues[regime.phase]
            if queue is None or queue.regime is not regime:
                queue = queues[regime.phase] = _Queue(self._tables[regime.phase], regime, state.cells, keep)
            else:
                queue.add(changed[queue.told:], state.cells)
            self._drain(queue, state, changed)
            queue.told = len(changed) - 1  # the last edit ended the regime before the queue heard of it

    def _drain(self, queue: "_Queue", state: "_State", changed: list[int]) -> None:
        """Apply the edits of one regime until it ends or the state fits."""
        table, regime, keep, heap = queue.table, queue.regime, queue.keep, queue.heap
        edits, place, after, raised, unit_of = table.edits, table.place, table.after, table.raised, table.unit_of
        cells, totals, regimes = state.cells, state.totals, state.regimes
        n_cells, owner, peak = table.n_cells, regime.owner, regime.peak
        saved = [(p, t.saved) for p, t in enumerate(self._tables)]
        uneven = [(p, t.spike, state.spikes[p]) for p, t in enumerate(self._tables) if t.uneven]
        pop, push = heapq.heappop, heapq.heappush
        # A call of a method costs as much as all else that an edit needs: hence none of them on the usual way.
        while True:
            edit = edits[heap[0]] if heap else -1
            if edit >= 0 and cells[unit_of[edit]] != edit % n_cells:
                pop(heap)
                continue
            if edit >= 0 and heap[0] < queue.limit:
                pop(heap)
            elif (edit := queue.pop_moving(cells)) < 0:
                if heap or queue.moving:
                    continue
                raise BudgetError(f"the allocation needs {max(totals)} bytes, more than the budget of {self._budget}, "
                                  "and nothing of it can be lowered any more; raise the budget, or admit lower bits "
                                  "or ranks")
            unit, new = unit_of[edit], after[edit]
            old, cells[unit] = cells[unit], new
            changed.append(unit)
            for p, less in saved:
                totals[p] -= less[edit]
            for p, spike, spikes in uneven:
                if spike[new] != spike[old]:
                    spikes[unit] = spike[new]
                    # A spike below those of all other units changes none of the regime's numbers.
                    if spike[new] >= regimes[p].others or spike[old] >= regimes[p].others:
                        state.renew(p)
            largest = max(totals)
            if largest <= self._budget or regimes[totals.index(largest)] is not regime:
                return
            if unit == owner or keep or raised[new] > peak or raised[new + n_cells] > peak:
                queue.add((unit,), cells)
                continue
            if place[new] >= 0:
                push(heap, place[new])
            if place[new + n_cells] >= 0:
                push(heap, place[new + n_cells])


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


class _Table:
    """One phase by cell (a unit's format and rank, numbered ``(unit F + format) R + rank``) and by edit.

    An edit is a cell and what is lowered there: cells count for formats first, then, ``n_cells`` further on, for
    ranks. All are plain lists: reading one number of an array costs ten times as much.
    """

    def __init__(self, phase: PhaseCost, weights: FloatArray) -> None:
        n_units, n_formats, n_ranks = phase.unit.shape
        self.fixed, self.n_units, self.n_cells = phase.fixed, n_units, phase.unit.size
        cell = np.arange(self.n_cells)
        before, unit = np.tile(cell, 2), np.tile(cell // (n_formats * n_ranks), 2)
        possible = np.concatenate([cell // n_ranks % n_formats > 0, cell % n_ranks > 0])
        after = np.where(possible, np.concatenate([cell - n_ranks, cell - 1]), before)
        coordinate = unit + n_units * (np.arange(len(unit)) >= self.n_cells)
        size, spike = phase.unit.reshape(-1), phase.spike.reshape(-1)
        saved, weight = size[before] - size[after], weights[coordinate]
        score = np.where(saved > 0, weight / np.where(saved > 0, saved, 1), weight)
        order = np.lexsort((coordinate, score, saved <= 0))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        self.edits: list[int] = order.tolist()  # in the order of their scores, were there no spikes
        self.place: list[int] = np.where(possible, place, -1).tolist()  # in that order; -1: nothing to lower
        self.after: list[int] = after.tolist()  # the cell that an edit leads to
        self.unit_of: list[int] = unit.tolist()
        self.saved: list[int] = saved.tolist()
        self.raised: list[int] = np.where(spike[after] > spike[before], spike[after], -1).tolist()
        self.uneven = bool((spike != spike[0]).any())
        self.unit: list[int] = size.tolist()
        self.spike: list[int] = spike.tolist()
        self._weights: list[float] = weight.tolist()
        self._coordinates: list[int] = coordinate.tolist()

    def key(self, edit: int, others: int, peak: int) -> _Key:
        """Rank of an edit among all where the largest spike is ``peak``, that of the other units ``others``."""
        after, weight = self.after[edit], self._weights[edit]
        saved = self.saved[edit] + peak - max(others, self.spike[after])
        coordinate = self._coordinates[edit]
        return (False, weight / saved, coordinate) if saved > 0 else (True, weight, coordinate)

    def place_of(self, key: _Key) -> int:
        """How many edits come before ``key``, were there no spikes."""
        return bisect.bisect_left(self.edits, key, key=self._plain_key)

    def _plain_key(self, edit: int) -> _Key:
        saved = self.saved[edit]
        weight, coordinate = self._weights[edit], self._coordinates[edit]
        return (False, weight / saved, coordinate) if saved > 0 else (True, weight, coordinate)


class _Queue:
    """The edits that are possible in one regime; those of cells left behind are dropped when they come up.

    ``heap`` holds places in the table's order, of the edits that don't move the largest spike. ``moving`` those
    that do; the first of these comes before the places from ``limit`` on.

    Args:
        table: The binding phase.
        regime: What the scores share.
        cells: Cell of every unit, ``L``.
        keep: Coordinates that are not to be lowered.
    """

    def __init__(self, table: _Table, regime: _Regime, cells: list[int], keep: frozenset[int]) -> None:
        self.table, self.regime, self.told = table, regime, 0
        self.heap: list[int] = []
        self.limit = len(table.edits)
        self.keep = keep
        self.moving: list[tuple[_Key, int]] = []
        self.add(range(len(cells)), cells)

    def add(self, units: Iterable[int], cells: list[int]) -> None:
        """Add the edits of these units' cells."""
        table, keep, (_, peak, owner, _) = self.table, self.keep, self.regime
        place, raised, n_cells, n_units, heap = table.place, table.raised, table.n_cells, table.n_units, self.heap
        for unit in units:
            edit = cells[unit]
            if place[edit] >= 0 and (not keep or unit not in keep):
                if raised[edit] <= peak and unit != owner:
                    heapq.heappush(heap, place[edit])
                else:
                    self._add_moving(edit, unit)
            edit += n_cells
            if place[edit] >= 0 and (not keep or unit + n_units not in keep):
                if raised[edit] <= peak and unit != owner:
                    heapq.heappush(heap, place[edit])
                else:
                    self._add_moving(edit, unit)

    def pop_moving(self, cells: list[int]) -> int:
        """Take the first edit that moves the largest spike; -1 if its cell was left behind, or if there is none."""
        if not self.moving:
            return -1
        _, edit = heapq.heappop(self.moving)
        self._renew_limit()
        return edit if cells[self.table.unit_of[edit]] == edit % self.table.n_cells else -1

    def _add_moving(self, edit: int, unit: int) -> None:
        _, peak, owner, others = self.regime
        key = self.table.key(edit, others if unit == owner else peak, peak)
        heapq.heappush(self.moving, (key, edit))
        if self.moving[0][1] == edit:
            self._renew_limit()

    def _renew_limit(self) -> None:
        table = self.table
        self.limit = table.place_of(self.moving[0][0]) if self.moving else len(table.edits)


class _State:
    """The cell of every unit, and the spikes, regime and bytes of every phase."""

    def __init__(self, cells: list[int], tables: list[_Table]) -> None:
        self.cells = cells
        self.spikes = [[t.spike[c] for c in cells] for t in tables]
        self.regimes = [_regime(p, spikes) for p, spikes in enumerate(self.spikes)]
        self.totals = [t.fixed + sum([t.unit[c] for c in cells]) + regime.peak
                       for t, regime in zip(tables, self.regimes, strict=True)]

    def renew(self, phase: int) -> None:
        """Look at a phase's spikes again."""
        before, now = self.regimes[phase], _regime(phase, self.spikes[phase])
        if now != before:
            self.totals[phase] += now.peak - before.peak
            self.regimes[phase] = now
