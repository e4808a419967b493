"""Atomic edits (one format or one rank moved by one step of its ladder) and the neighbourhoods that they span."""

import numpy as np
import numpy.typing as npt

from qra_bo.space.cost import CostTable
from qra_bo.space.space import IntArray, SearchSpace

_DRAW_ROUNDS = 4


def ladder_tops(space: SearchSpace) -> IntArray:
    """Largest index of every coordinate of an index row, ``2 L``."""
    return np.repeat(np.array([len(space.formats) - 1, len(space.ranks) - 1], dtype=np.int64), space.n_units)


def atomic_neighbours(space: SearchSpace, row: IntArray) -> IntArray:
    """Return every row one atomic edit away, ``m x 2 L``: by coordinate, down before up."""
    return _Ball(space, row).shells(1)[0]


def neighbours_within(space: SearchSpace, row: IntArray, radius: int, *, costs: CostTable, budget_bytes: int,
                      rng: np.random.Generator, cap: int = 20_000) -> IntArray:
    """Return the rows within the budget and 1 to ``radius`` atomic edits from ``row``, ``m x 2 L``, nearest first.

    Shells are enumerated completely as long as their rows, feasible or not, number no more than ``cap``; the rest of
    ``cap`` is filled with rows drawn uniformly from the shells further out. ``row`` (``2 L``) itself need not fit; the
    same state of ``rng`` gives the same rows. ``radius`` and ``cap`` are at least 1.
    """
    ball = _Ball(space, row)
    sizes = ball.ways(radius)[1][0, 1:]  # of the shells 1 to radius
    complete = int((np.cumsum(sizes) <= cap).sum())
    found = np.vstack([row[None, :][:0], *ball.shells(complete)])
    found = found[costs.feasible(found, budget_bytes)]
    if sizes[complete:].sum() == 0:
        return found
    known = {r.tobytes(): r for r in found}
    for _ in range(_DRAW_ROUNDS):
        if len(known) < cap:
            drawn = ball.draw(cap - len(known), complete + 1, radius, rng)
            known |= {r.tobytes(): r for r in drawn[costs.feasible(drawn, budget_bytes)]}
    rows = np.array([*known.values()], dtype=np.int64).reshape(-1, len(row))
    return rows[np.argsort(np.abs(rows - row).sum(axis=1), kind="stable")]


class _Ball:
    """Lattice points around a centre, by L1 distance, inside the box of the ladders."""

    def __init__(self, space: SearchSpace, row: IntArray) -> None:
        self.top, self.row = ladder_tops(space), row

    def shells(self, radius: int) -> list[IntArray]:
        """The shells 1 to ``radius``; each row arises once, its edits made in order of coordinate."""
        d = len(self.row)
        rows, last, way = self.row[None, :], np.array([-1]), np.array([0])
        out: list[IntArray] = []
        for _ in range(radius):
            grown: list[tuple[IntArray, IntArray, IntArray]] = []
            for step in (-1, 1):
                moved = rows + step
                allowed = (moved >= 0) & (moved <= self.top)
                later = np.arange(d)[None, :] > last[:, None]
                again = (np.arange(d)[None, :] == last[:, None]) & (way[:, None] == step)
                source, coordinate = np.nonzero(allowed & (later | again))
                new = rows[source]
                new[np.arange(len(new)), coordinate] += step
                grown.append((new, coordinate, np.full(len(new), step)))
            rows, last, way = (np.concatenate(parts) for parts in zip(*grown, strict=True))
            order = np.argsort(last, kind="stable")
            rows, last, way = rows[order], last[order], way[order]
            out.append(rows)
        return out

    def ways(self, radius: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Ways to move one coordinate by ``t`` steps (``2 L x radius + 1``), and the coordinates from ``i`` on by
        ``t`` steps in all (``2 L + 1 x radius + 1``)."""
        steps = np.arange(radius + 1)
        single = ((self.row[:, None] >= steps).astype(np.float64) + (self.row[:, None] + steps <= self.top[:, None]))
        single[:, 0] = 1.0
        rest = np.zeros((len(self.row) + 1, radius + 1))
        rest[-1, 0] = 1.0
        for i in range(len(self.row) - 1, -1, -1):
            rest[i] = np.convolve(single[i], rest[i + 1])[: radius + 1]
        return single, rest

    def draw(self, n: int, nearest: int, furthest: int, rng: np.random.Generator) -> IntArray:
        """``n`` rows, uniform over all that are ``nearest`` to ``furthest`` edits away, with repeats."""
        single, rest = self.ways(furthest)
        shells, d = np.arange(nearest, furthest + 1), len(self.row)
        left = rng.choice(shells, size=n, p=rest[0, shells] / rest[0, shells].sum())
        rows, first = np.repeat(self.row[None, :], n, axis=0), np.zeros(n, dtype=np.int64)
        # moved[k, i, t]: ways to make k edits from coordinate i on that begin with t steps of i itself.
        moved = np.zeros((furthest + 1, d, furthest + 1))
        for k in range(1, furthest + 1):
            moved[k, :, 1:k + 1] = single[:, 1:k + 1] * rest[1:, k - 1::-1][:, :k]
        until = np.concatenate([np.zeros((furthest + 1, 1)), np.cumsum(moved.sum(axis=2), axis=1)], axis=1)
        while (active := np.flatnonzero(left)).size:
            ahead = left[active]
            aim = until[ahead, first[active]]
            aim = aim + rng.random(len(active)) * (until[ahead, -1] - aim)
            coordinate = np.empty_like(active)
            for number in np.unique(ahead):
                same = ahead == number
                coordinate[same] = np.searchsorted(until[number], aim[same], side="right") - 1
            cumulative = np.cumsum(moved[ahead, coordinate], axis=1)
            taken = (rng.random(len(active))[:, None] * cumulative[:, -1:] >= cumulative).sum(axis=1)
            here = self.row[coordinate]
            up_allowed, down_allowed = here + taken <= self.top[coordinate], here >= taken
            up = np.where(up_allowed & down_allowed, rng.random(len(active)) < 0.5, up_allowed)
            rows[active, coordinate] += np.where(up, taken, -taken)
            left[active] -= taken
            first[active] = coordinate + 1
        return rows
