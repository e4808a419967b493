"""Stage 1 as published: NSGA-II over (loss, memory), every offspring at low fidelity, the best promoted to high."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.evolution.archive import Archive
from qra_bo.searchers.evolution.initialisation import random_near_budget, warm_population
from qra_bo.searchers.evolution.operators import Operators
from qra_bo.searchers.evolution.promotion import NetworkPromotion, Promotion, PromotionModel
from qra_bo.searchers.evolution.selection import front, hypervolume, rank_and_crowd, survivors, tournament
from qra_bo.sensitivity.profile import FloatArray
from qra_bo.sensitivity.repair import Repair
from qra_bo.sensitivity.scaling import fidelity_importance, plasticity_importance
from qra_bo.space import Allocation, IntArray
from qra_bo.trials import Fidelity, Proposal, Trial
from qra_bo.utils.errors import ConfigError

_STRAGGLERS = 0.25
"""Share of a generation that may still be awaited when the next one begins; it joins the pool when it is told."""
_TRIES = 20
"""Attempts at a new allocation for every one that is wanted, first by variation, then at random."""


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A non-dominated allocation that fits the budget, with its high-fidelity loss and its bytes."""

    allocation: Allocation
    loss: float
    bytes: int


class _Phase(Enum):
    BREED = "breed"
    PROMOTE = "promote"
    SELECT = "select"
    DONE = "done"


class EvolutionarySearch:
    """Asks for one generation at a time: its offspring, then (where there is a low fidelity) the promoted ones.

    While much of a generation is asked for and not yet told of, ``ask`` may have nothing to give; the last quarter is
    not waited for. Whatever it is told of besides (uniform baselines, stragglers) joins the pool that the next population is
    selected from.

    Args:
        problem: What is searched.
        population: Allocations that survive a generation, and offspring of each.
        generations: Most generations, the first population included.
        promote: Low-fidelity allocations that a generation promotes.
        gamma: Exponent of the importance in the odds of mutating a unit.
        tau: Map of sensitivities in the warm start: ``"identity"``, ``"sqrt"`` or ``"square"``.
        warm: Whether the first population is Eq. 6's; else it is random.
        tolerance: Growth of the hypervolume (loss scaled by its range in the first generation, memory by the
            budget's) below which the search stops ...
        patience: ... over that many generations.
        screening: Whether a model (Eq. 7) says whom to promote; else the low-fidelity loss does.
        make_model: Gives a new promotion model; by default the published network.

    Raises:
        ConfigError: If a number is out of range or ``tau`` is unknown.
        ProfileError: If the profile holds no I_r.
    """

    name = "evolution"

    def __init__(self, problem: SearchProblem, population: int = 40, generations: int = 15, promote: int = 6,
                 gamma: float = 1.5, tau: str = "identity", warm: bool = True, tolerance: float = 1e-3,
                 patience: int = 3, screening: bool = True,
                 make_model: Callable[[], PromotionModel] | None = None) -> None:
        if population < 2 or generations < 1 or promote < 1 or gamma < 0 or patience < 1:
            raise ConfigError("evolution needs population >= 2, generations >= 1, promote >= 1, gamma >= 0 and "
                              f"patience >= 1; got {population}, {generations}, {promote}, {gamma}, {patience}")
        self._problem = problem
        self._size, self._generations, self._promote = population, generations, promote
        self._tolerance, self._patience, self._tau, self._warm = tolerance, patience, tau, warm
        i_q = fidelity_importance(problem.profile)
        i_r = plasticity_importance(problem.profile, problem.space.ranks.values[-1])
        self._repair = Repair(problem.costs, problem.budget_bytes, i_q, i_r)
        self._operators = Operators(problem, self._repair, i_q, i_r, gamma)
        self._model_seed = int(problem.rng("evolution.promotion").integers(2**31))
        model = make_model or (lambda: NetworkPromotion(self._model_seed))
        self._promotion = Promotion(problem, i_q, i_r, model if screening else None)
        self._rng = problem.rng("evolution")
        self._explore = Fidelity.HIGH if problem.low_steps is None else Fidelity.LOW
        self._archive = Archive(problem)
        self._phase, self._generation, self._exhausted = _Phase.BREED, 0, False
        self._parents: tuple[IntArray, IntArray, FloatArray] | None = None
        self._queue: list[tuple[IntArray, Fidelity]] = []
        self._bearable = 0
        self._scale: tuple[FloatArray, FloatArray] | None = None
        self._volumes: list[float] = []

    def ask(self, n: int) -> list[Proposal]:
        """Up to ``n`` proposals of the current generation; none while the rest of it is awaited, or at the end."""
        while not self._queue and self._archive.waiting <= self._bearable and self._phase is not _Phase.DONE:
            self._advance()
            self._bearable = int(_STRAGGLERS * len(self._queue))
        taken, self._queue = self._queue[:n], self._queue[n:]
        return [Proposal(self._problem.space.decode(row), fidelity, "evolution") for row, fidelity in taken]

    def tell(self, evaluations: Sequence[Trial]) -> None:
        """Learn of finished evaluations, failed ones and uniform baselines included."""
        self._archive.tell(evaluations)
        told = {(self._problem.space.encode(e.allocation).tobytes(), e.fidelity) for e in evaluations
                if self._problem.space.contains(e.allocation)}
        # What waits in the queue and was told of unasked is not asked for again.
        self._queue = [(row, f) for row, f in self._queue if (row.tobytes(), f) not in told]

    def front(self) -> list[FrontPoint]:
        """Non-dominated allocations that fit the budget and were evaluated at high fidelity, least loss first."""
        rows, losses, totals = self._evaluated()
        chosen = front(np.column_stack([losses, totals]))
        points = [FrontPoint(self._problem.space.decode(rows[i]), float(losses[i]), int(totals[i])) for i in chosen]
        return sorted(points, key=lambda p: (p.loss, p.bytes))

    @property
    def hypervolumes(self) -> tuple[float, ...]:
        """Hypervolume after every finished generation."""
        return tuple(self._volumes)

    def _advance(self) -> None:
        if self._phase is _Phase.BREED:
            self._queue = [(row, self._explore) for row in self._offspring()]
            self._phase = _Phase.PROMOTE if self._explore is Fidelity.LOW else _Phase.SELECT
            self._exhausted = not self._queue
        elif self._phase is _Phase.PROMOTE:
            self._promotion.fit(*self._archive.pairs())
            self._queue = [(row, Fidelity.HIGH) for row in self._promoted()]
            self._exhausted = self._exhausted and not self._queue
            self._phase = _Phase.SELECT
        else:
            self._select()
            self._generation += 1
            over = self._exhausted or self._generation >= self._generations or self._converged()
            self._phase = _Phase.DONE if over else _Phase.BREED

    def _offspring(self) -> list[IntArray]:
        """Up to ``population`` new rows that fit, claimed for the exploring fidelity."""
        rows: list[IntArray] = []
        if self._parents is None and self._warm:
            rows += [r for r in warm_population(self._problem, self._repair, self._tau, self._size, self._rng)
                     if self._archive.claim(r, self._explore)]
        for attempt in range(2 * _TRIES * self._size):
            if len(rows) == self._size:
                break
            row = self._variation() if attempt < _TRIES * self._size else None
            if row is None:
                row = random_near_budget(self._problem, self._rng)
            if self._archive.claim(row, self._explore):
                rows.append(row)
        return rows

    def _variation(self) -> IntArray | None:
        if self._parents is None:
            return None
        rows, rank, crowding = self._parents
        first, second = (rows[tournament(rank, crowding, self._rng)] for _ in range(2))
        return self._operators.child(first, second, self._rng)

    def _promoted(self) -> list[IntArray]:
        """The ``promote`` rows of least estimated loss that fit, claimed for high fidelity."""
        rows, low = self._archive.unpromoted()
        fits = self._problem.costs.feasible(rows, self._problem.budget_bytes)
        rows, low = rows[fits], low[fits]
        order = np.argsort(self._promotion.estimate(rows, low), kind="stable")
        return [rows[i] for i in order[: self._promote] if self._archive.claim(rows[i], Fidelity.HIGH)]

    def _select(self) -> None:
        """The next parents, from all that is known: high-fidelity losses where there are any, else estimates."""
        self._promotion.fit(*self._archive.pairs())
        high_rows, high = self._archive.known(Fidelity.HIGH)
        low_rows, low = self._archive.unpromoted()
        rows = np.vstack([high_rows, low_rows])
        if len(rows):
            losses = np.concatenate([high, self._promotion.estimate(low_rows, low)])
            totals = self._problem.costs.totals(rows)
            violation = np.maximum(0, totals - self._problem.budget_bytes).astype(np.float64)
            rank, crowding = rank_and_crowd(np.column_stack([losses, totals]), violation)
            kept = survivors(rank, crowding, self._size)
            self._parents = rows[kept], rank[kept], crowding[kept]
        self._volumes.append(self._volume())

    def _evaluated(self) -> tuple[IntArray, FloatArray, IntArray]:
        """Rows that fit and have a high-fidelity loss (``n x 2 L``), losses and bytes (``n`` each)."""
        rows, losses = self._archive.known(Fidelity.HIGH)
        totals = self._problem.costs.totals(rows)
        fits = totals <= self._problem.budget_bytes
        return rows[fits], losses[fits], totals[fits]

    def _volume(self) -> float:
        _, losses, totals = self._evaluated()
        if len(losses) == 0:
            return 0.0
        points = np.column_stack([losses, totals]).astype(np.float64)
        if self._scale is None:
            low = np.array([losses.min(), totals.min()], dtype=np.float64)
            high = np.array([losses.max(), self._problem.budget_bytes], dtype=np.float64)
            self._scale = low, np.where(high > low, high - low, 1.0)
        # A reference a little beyond the worst keeps the first generation's extremes from counting nothing.
        return hypervolume((points - self._scale[0]) / self._scale[1], np.array([1.1, 1.1]))

    def _converged(self) -> bool:
        recent = self._volumes[-(self._patience + 1):]
        return len(recent) > self._patience and recent[-1] - recent[0] < self._tolerance
