"""The best allocation of an additive objective under the budget: an exact multiple-choice knapsack (HiGHS)."""

import heapq
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from qra_bo.space.cost import CostTable
from qra_bo.space.space import FloatArray, IntArray
from qra_bo.utils.errors import BudgetError, QRABOError, SpaceError

_LARGEST_COEFFICIENT = 1000.0
_SLACK = 1e-6  # only ever admits too much: rows that exceed the budget are cut
_INFEASIBLE = 2  # status of scipy.optimize.milp
MOST_NODES = 500
"""Branch-and-bound nodes of a solve that need not be exact; the default search took 329 at most for 30 units."""


class SolverError(QRABOError):
    """The mixed-integer solver gave up on a problem that has a solution."""


def solve_knapsack(values: FloatArray, costs: CostTable, budget_bytes: int, *, forbid: IntArray | None = None,
                   rel_gap: float = 0.0) -> IntArray:
    """Return the row (``2 L``) that minimises ``sum_u values[u, q_u, r_u]`` within the budget, forbidden ones excluded.

    Forbidden rows become no-good cuts, each added when the solver returns it.

    Args:
        values: ``L x F x R``, finite.
        costs: Memory of every allocation; several phases and spikes are treated exactly.
        budget_bytes: Hard limit.
        forbid: ``n x 2 L`` rows to exclude.
        rel_gap: Relative gap at which the solver may stop; 0 is exact. With a gap it also stops at ``MOST_NODES``
            nodes if it has a row, because many near-equal rows can take minutes.

    Raises:
        SpaceError: If ``values`` has the wrong shape or is not finite.
        BudgetError: If no admissible row fits into the budget.
        SolverError: If the solver fails for any other reason.
    """
    if values.shape != costs.shape or not np.isfinite(values).all():
        raise SpaceError(f"values must be finite and of shape {costs.shape}; got shape {values.shape}")
    banned = set() if forbid is None else {tuple(int(v) for v in row) for row in forbid}
    cuts: list[IntArray] = []
    while True:
        row = _solve(values, costs, budget_bytes, cuts, rel_gap)
        # The solver has tolerances, the budget is exact to the byte: a row that exceeds it is cut too.
        if tuple(int(v) for v in row) not in banned and costs.feasible(row[None, :], budget_bytes)[0]:
            return row
        cuts.append(row)


def _solve(values: FloatArray, costs: CostTable, budget: int, cuts: list[IntArray], rel_gap: float) -> IntArray:
    """Branch on the largest spike of every phase, so that each node is a purely binary program."""
    n_units, _, n_ranks = values.shape
    phases = [_Phase(p.unit.reshape(n_units, -1), p.spike.reshape(n_units, -1), budget - p.fixed) for p in costs.phases]
    phases = [p for p in phases if p.size.max(axis=1).sum() + p.spike.max() > p.room]
    program = _Program(values, phases, cuts, rel_gap)
    start = tuple((int(p.spike.min(axis=1).max()), int(p.spike.max())) for p in phases)
    best: tuple[float, IntArray] | None = None
    heap: list[tuple[float, int, tuple[tuple[int, int], ...]]] = [(-np.inf, 0, start)]
    numbers = itertools.count(1)  # break ties of values
    while heap and (best is None or heap[0][0] < best[0]):
        _, _, spans = heapq.heappop(heap)
        solved = program.solve(spans)
        if solved is None or (best is not None and solved[0] >= best[0]):
            continue
        value, choice = solved
        peaks = [int(p.spike[np.arange(n_units), choice].max()) for p in phases]
        over = [i for i, p in enumerate(phases) if p.size[np.arange(n_units), choice].sum() + peaks[i] > p.room]
        split = next((i for i in over if peaks[i] > spans[i][0]), None)
        if split is None:
            best = (value, choice)
            continue
        for span in ((spans[split][0], peaks[split] - 1), (peaks[split], spans[split][1])):
            heapq.heappush(heap, (value, next(numbers), (*spans[:split], span, *spans[split + 1:])))
    if best is None:
        raise BudgetError(f"no {'further ' if cuts else ''}allocation of the space fits into {budget} bytes; "
                          "raise the budget, or admit lower bits or ranks")
    return np.concatenate([best[1] // n_ranks, best[1] % n_ranks]).astype(np.int64)


@dataclass(frozen=True)
class _Phase:
    """Bytes of one phase by option (``L x F R``), and the budget less its fixed part."""

    size: IntArray
    spike: IntArray
    room: int


class _Program:
    """The binary program over the options that can matter, for given bounds on every phase's largest spike."""

    def __init__(self, values: FloatArray, phases: list[_Phase], cuts: list[IntArray], rel_gap: float) -> None:
        n_units, _, n_ranks = values.shape
        flat = values.reshape(n_units, -1)
        self._unit, self._option = np.nonzero(_undominated(flat, phases, len(cuts)))
        n_options = len(self._unit)
        blocks = [(csr_array((np.ones(n_options), (self._unit, np.arange(n_options))), shape=(n_units, n_options)),
                   np.ones(n_units), np.ones(n_units))]
        for cut in cuts:
            picked = (self._option == flatten(cut, n_ranks)[self._unit]).astype(np.float64)
            blocks.append((csr_array(picked[None, :]), np.array([-np.inf]), np.array([n_units - 1.0])))
        self._spikes, self._scales, self._lows = [], [], []
        for phase in phases:
            low = phase.size.min(axis=1)
            extra = (phase.size - low[:, None])[self._unit, self._option]
            # Coefficients of moderate size suit the solver's absolute tolerance.
            scale = max(int(extra.max()), 1) / _LARGEST_COEFFICIENT
            blocks.append((csr_array(extra[None, :] / scale), np.array([-np.inf]), np.zeros(1)))
            self._spikes.append(phase.spike[self._unit, self._option])
            self._scales.append(scale)
            self._lows.append(phase.room - int(low.sum()))
        objective = flat[self._unit, self._option] - flat.min(axis=1)[self._unit]
        self._value = objective / (objective.max() or 1.0)
        self._matrix = vstack([b[0] for b in blocks]).tocsr()
        self._lower, self._upper = np.concatenate([b[1] for b in blocks]), np.concatenate([b[2] for b in blocks])
        self._n_units, self._rel_gap = n_units, rel_gap

    def solve(self, spans: tuple[tuple[int, int], ...]) -> tuple[float, IntArray] | None:
        """Value and option of every unit (``L``), or ``None`` where nothing fits. Raises ``SolverError`` if the solver
        stops without an answer."""
        admitted, upper = np.ones(len(self._unit)), self._upper.copy()
        for index, (low, high) in enumerate(spans):
            admitted *= self._spikes[index] <= high
            upper[index - len(spans)] = (self._lows[index] - low) / self._scales[index] + _SLACK
        for limit in ({"node_limit": MOST_NODES}, {}) if self._rel_gap > 0 else ({},):
            result = milp(self._value, integrality=np.ones(len(self._unit)), bounds=Bounds(0.0, admitted),
                          constraints=LinearConstraint(self._matrix, self._lower, upper),
                          options={"mip_rel_gap": self._rel_gap, **limit})
            if result.x is not None or result.status == _INFEASIBLE:
                break
        if result.status == _INFEASIBLE:
            return None
        if result.x is None:
            raise SolverError(f"the knapsack of {self._n_units} units was not solved: {result.message}")
        taken = result.x > 0.5
        choice = np.zeros(self._n_units, dtype=np.int64)
        choice[self._unit[taken]] = self._option[taken]
        return float(self._value[taken].sum()), choice


def flatten(row: IntArray, n_ranks: int) -> IntArray:
    """Option of every unit (``L``) of an index row (``2 L``)."""
    n_units = len(row) // 2
    return row[:n_units] * n_ranks + row[n_units:]


def _undominated(flat: FloatArray, phases: list[_Phase], n_cuts: int) -> npt.NDArray[np.bool_]:
    """Return the options (``L x F R``) that at most ``n_cuts`` others dominate: a solution may need them.

    With ``k`` rows cut, an option that ``k + 1`` others dominate can be swapped for one of them without
    meeting a cut. Ties are broken by position, so that one of several equal options stays.
    """
    n_units, n_options = flat.shape
    earlier = np.tri(n_options, k=-1, dtype=bool).T
    keep = np.ones((n_units, n_options), dtype=bool)
    for unit in range(n_units):
        measures = [flat[unit], *(m[unit] for p in phases for m in (p.size, p.spike))]
        no_worse = np.ones((n_options, n_options), dtype=bool)
        better = np.zeros((n_options, n_options), dtype=bool)
        for m in measures:
            no_worse &= m[:, None] <= m[None, :]
            better |= m[:, None] < m[None, :]
        keep[unit] = (no_worse & (better | earlier)).sum(axis=0) <= n_cuts
    return keep
