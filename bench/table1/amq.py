"""AMQ (arXiv 2509.12019): bits of every unit by evolutionary search on quantisation sensitivity, without fine-tuning.

As published: units far more sensitive than the rest are kept from low bits (search space pruning); a radial-basis
predictor learns the measured divergence from the 16-bit model; NSGA-II over (predicted divergence, bytes) proposes, the
proposals are measured, and the predictor is fitted again (iterative search and update).

Four differences favour the method. The formats themselves are measured, so the published proxy (HQQ instead
of a slow quantiser) is not needed. Sensitive units keep at least the largest format that fits everywhere: the published
ladder ends at 4 bits, and 8 bits for them would leave too little for the others. The predictor starts from the sum of
the units' single divergences: with dozens of measurements instead of thousands, a predictor on bits alone loses to
uniform bits. Proposals are denser near the budget, because there is one budget to serve.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from scipy.interpolate import RBFInterpolator

from qra_bo.searchers.evolution.selection import rank_and_crowd, survivors, tournament
from qra_bo.space import CostTable, FloatArray, IntArray
from qra_bo.utils.errors import BudgetError, ConfigError

TINY = 1e-12
MeasureBits = Callable[[IntArray], FloatArray]
"""Measured divergence (``n``, nats) of ``n x L`` format indices."""


@dataclass(frozen=True, slots=True)
class AMQOptions:
    """Number of measurements, and the search on the predictor.

    Args:
        evaluations: Number of measured choices of bits.
        initial: Number of them before the predictor is first fitted.
        batch: Number of them between two fits.
        population: Population of NSGA-II on the predictor.
        generations: Generations of NSGA-II between two batches.
        outlier: Units whose divergence at the lowest bits exceeds this multiple of the median are kept from low bits.

    Raises:
        ConfigError: If a number is out of range.
    """

    evaluations: int = 60
    initial: int = 20
    batch: int = 8
    population: int = 40
    generations: int = 20
    outlier: float = 2.0

    def __post_init__(self) -> None:
        if not 2 <= self.initial <= self.evaluations or self.batch < 1 or self.population < 4 or self.generations < 1 \
                or self.outlier <= 0:
            raise ConfigError("AMQ needs 2 <= initial <= evaluations, batch >= 1, population >= 4, generations >= 1 "
                              f"and outlier > 0; got {self}")


@dataclass(frozen=True)
class AMQResult:
    """Result of a search.

    Args:
        choice: Format index of every unit, ``L``, with the least measured divergence that fits.
        divergence: Its divergence (nats).
        measured: All measured choices, ``n x L``, in order.
        divergences: Their divergences, ``n``.
        pruned: Units that were kept from low bits.
    """

    choice: IntArray
    divergence: float
    measured: IntArray
    divergences: FloatArray
    pruned: tuple[int, ...]


class AMQ:
    """The search; ``run`` measures through what it is given and keeps to the budget.

    Args:
        costs: Bytes, ``L x F x 1``: one rank everywhere.
        budget_bytes: Hard limit.
        sensitivity: ``L x F``: divergence with one unit quantised alone, formats by increasing bits.
        options: See there.
        rng: Of its own.

    Raises:
        BudgetError: If even the lowest bits do not fit.
    """

    def __init__(self, costs: CostTable, budget_bytes: int, sensitivity: FloatArray, options: AMQOptions,
                 rng: np.random.Generator) -> None:
        self._costs, self._budget, self._options, self._rng = costs, budget_bytes, options, rng
        self._n, self._top = sensitivity.shape[0], sensitivity.shape[1] - 1
        self._alone = np.maximum(sensitivity, 0.0)
        if not self._fits(np.zeros((1, self._n), dtype=np.int64))[0]:
            raise BudgetError(f"even the lowest bits everywhere do not fit into {budget_bytes} bytes; raise the "
                              "budget, or admit lower bits or a smaller rank")
        self._everywhere = max(f for f in range(self._top + 1) if self._fits(np.full((1, self._n), f))[0])
        limit = options.outlier * float(np.median(sensitivity[:, 0]))
        self.pruned = tuple(np.flatnonzero(sensitivity[:, 0] > limit).tolist())
        self._floor = np.zeros(self._n, dtype=np.int64)
        self._floor[list(self.pruned)] = self._everywhere
        self._rows: dict[bytes, float] = {}

    def run(self, measure: MeasureBits) -> AMQResult:
        """Search and update until all evaluations are spent or nothing new is proposed."""
        self._learn(self._first(self._options.initial), measure)
        while (left := self._options.evaluations - len(self._rows)) > 0:
            rows = self._proposals(min(self._options.batch, left))
            if not len(rows):
                break
            self._learn(rows, measure)
        measured, divergences = self._known()
        best = int(np.where(self._fits(measured), divergences, np.inf).argmin())
        return AMQResult(measured[best], float(divergences[best]), measured, divergences, self.pruned)

    def _fits(self, rows: IntArray) -> npt.NDArray[np.bool_]:
        return self._costs.feasible(np.hstack([rows, np.zeros_like(rows)]), self._budget)

    def _bytes(self, rows: IntArray) -> FloatArray:
        return self._costs.totals(np.hstack([rows, np.zeros_like(rows)])).astype(np.float64)

    def _lowered(self, row: IntArray) -> IntArray:
        """``row`` with random units lowered by one step until it fits."""
        row = np.maximum(row, self._floor)
        while not self._fits(row[None, :])[0]:
            row[self._rng.choice(np.flatnonzero(row > self._floor))] -= 1
        return row

    def _first(self, n: int) -> IntArray:
        """Every format everywhere, lowered at random until it fits, and random choices of spread average bits."""
        rows: dict[bytes, IntArray] = {}
        for f in range(self._top + 1):
            row = self._lowered(np.full(self._n, f, dtype=np.int64))
            rows[row.tobytes()] = row
        for _ in range(20 * n):
            if len(rows) == n:
                break
            mean = self._rng.random() * self._top
            row = self._lowered(np.clip(np.rint(self._rng.normal(mean, 0.8, self._n)), 0, self._top).astype(np.int64))
            rows.setdefault(row.tobytes(), row)
        return np.stack(list(rows.values())[:n])

    def _learn(self, rows: IntArray, measure: MeasureBits) -> None:
        for row, divergence in zip(rows, measure(rows), strict=True):
            self._rows[row.tobytes()] = float(divergence)

    def _known(self) -> tuple[IntArray, FloatArray]:
        rows = np.stack([np.frombuffer(key, dtype=np.int64) for key in self._rows])
        return rows, np.array(list(self._rows.values()))

    def _predictor(self) -> Callable[[IntArray], FloatArray]:
        """Logarithm of the divergence: a line in that of the sum of single units', and radial basis functions over the
        ladder codes for what the line leaves."""
        rows, divergences = self._known()
        logs, summed = np.log(np.maximum(divergences, TINY)), self._summed(rows)
        slope, level = np.polyfit(summed, logs, 1) if np.ptp(summed) > 0 else (0.0, float(logs.mean()))
        model = RBFInterpolator(rows / max(1, self._top), logs - (slope * summed + level), kernel="linear", degree=0)

        def predict(candidates: IntArray) -> FloatArray:
            rest = np.asarray(model(candidates / max(1, self._top)), dtype=np.float64)
            return slope * self._summed(candidates) + level + rest

        return predict

    def _summed(self, rows: IntArray) -> FloatArray:
        total = self._alone[np.arange(self._n), rows].sum(axis=1)
        logs: FloatArray = np.log(np.maximum(total, TINY))
        return logs

    def _proposals(self, n: int) -> IntArray:
        """Unmeasured members of the predicted front, spread over its bytes and denser towards the budget."""
        predict = self._predictor()
        population, _ = self._known()
        for _ in range(self._options.generations):
            objectives = np.stack([predict(population), self._bytes(population)], axis=1)
            rank, crowding = rank_and_crowd(objectives, np.zeros(len(population)))
            kept = survivors(rank, crowding, self._options.population)
            population, rank, crowding = population[kept], rank[kept], crowding[kept]
            children = [self._child(population[tournament(rank, crowding, self._rng)],
                                    population[tournament(rank, crowding, self._rng)])
                        for _ in range(self._options.population)]
            population = np.unique(np.vstack([population, *children]), axis=0)
        fresh = population[[row.tobytes() not in self._rows for row in population]]
        if not len(fresh):
            return fresh
        objectives = np.stack([predict(fresh), self._bytes(fresh)], axis=1)
        members: IntArray = fresh[np.sort(NonDominatedSorting().do(objectives, only_non_dominated_front=True))]
        members = members[np.argsort(-self._bytes(members), kind="stable")]
        places = np.linspace(0, 1, n) ** 2 * (len(members) - 1)
        return members[np.unique(np.maximum(places.round(), np.arange(n)).clip(max=len(members) - 1).astype(np.int64))]

    def _child(self, a: IntArray, b: IntArray) -> IntArray:
        """Uniform crossover, then a step up or down with chance 1 / L a unit, brought back within the budget."""
        child = np.where(self._rng.random(self._n) < 0.5, a, b)
        step = np.where(self._rng.random(self._n) < 1 / self._n, self._rng.choice([-1, 1], self._n), 0)
        return self._lowered(np.clip(child + step, 0, self._top))
