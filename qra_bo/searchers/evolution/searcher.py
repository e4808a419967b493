"""Stage 1 as published: NSGA-II over (loss, memory), offspring at low fidelity, the best promoted to high."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.evolution.selection import Promotion, hypervolume, rank_and_crowd, survivors, tournament
from qra_bo.searchers.evolution.variation import Operators, random_near_budget, warm_population
from qra_bo.searchers.observations import ObservingSearcher
from qra_bo.sensitivity.importance import Repair, fidelity_importance, plasticity_importance
from qra_bo.space import FloatArray, IntArray
from qra_bo.trials import Fidelity, Proposal, Trial
from qra_bo.utils.errors import ConfigError

_STRAGGLERS = 0.25
"""Share of a generation that may still be pending when the next one begins; it joins the pool when it arrives."""
_TRIES = 20
"""Attempts for every new allocation, first by variation, then at random."""
_RANDOM_TRIES = 200


class Archive:
    """Losses of index rows by fidelity.

    Only losses that the search may compare are kept: on the validation split, at the calibrated learning rate, of
    allocations on the ladders. Other trials (16-bit references, calibration, confirmation) are left out.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._losses: dict[Fidelity, dict[bytes, float]] = {f: {} for f in Fidelity}
        self._seen: set[tuple[bytes, Fidelity]] = set()
        self._asked: set[tuple[bytes, Fidelity]] = set()

    @property
    def waiting(self) -> int:
        """Number of rows that were asked for and are pending."""
        return len(self._asked)

    @property
    def seen(self) -> IntArray:
        """Every row that was asked for or observed at high fidelity, ``n x 2 L``."""
        return self._rows(sorted(key for key, fidelity in self._seen if fidelity is Fidelity.HIGH))

    def claim(self, row: IntArray, fidelity: Fidelity) -> bool:
        """Mark ``row`` as asked for; false if it was asked for or observed before, at this fidelity or a higher one."""
        key = row.tobytes()
        if (key, fidelity) in self._seen or (key, Fidelity.HIGH) in self._seen:
            return False
        self._seen.add((key, fidelity))
        self._asked.add((key, fidelity))
        return True

    def tell(self, trials: Iterable[Trial]) -> None:
        """Learn of trials; those that failed have no loss and are not asked for again."""
        space = self._problem.space
        for trial in trials:
            if trial.spec.split != "validation" or not space.contains(trial.allocation):
                continue
            key = space.encode(trial.allocation).tobytes()
            self._seen.add((key, trial.fidelity))
            self._asked.discard((key, trial.fidelity))
            if trial.loss is not None and np.isfinite(trial.loss):
                self._losses[trial.fidelity][key] = trial.loss

    def known(self, fidelity: Fidelity) -> tuple[IntArray, FloatArray]:
        """Return rows with a loss at ``fidelity`` (``n x 2 L``) and these losses (``n``), in the order of arrival."""
        losses = self._losses[fidelity]
        return self._rows(losses), np.array(list(losses.values()), dtype=np.float64)

    def pairs(self) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return rows with a loss at both fidelities (``n x 2 L``), their low and their high losses (``n`` each)."""
        low, high = self._losses[Fidelity.LOW], self._losses[Fidelity.HIGH]
        both = [key for key in low if key in high]
        return self._rows(both), np.array([low[k] for k in both]), np.array([high[k] for k in both])

    def unpromoted(self) -> tuple[IntArray, FloatArray]:
        """Return rows with a low loss and no high one asked for (``n x 2 L``), and these low losses (``n``)."""
        low = {k: v for k, v in self._losses[Fidelity.LOW].items() if (k, Fidelity.HIGH) not in self._seen}
        return self._rows(low), np.array(list(low.values()), dtype=np.float64)

    def _rows(self, keys: Iterable[bytes]) -> IntArray:
        rows = [np.frombuffer(key, dtype=np.int64) for key in keys]
        return np.array(rows, dtype=np.int64).reshape(-1, 2 * self._problem.space.n_units)


class EvolutionarySearch:
    """One generation at a time: its offspring, then (where there is a low fidelity) the promoted ones.

    While more than a quarter of a generation is pending, ``ask`` returns nothing. All other trials (uniform baselines,
    late ones) join the pool from which the next population is selected.

    Args:
        population: Allocations that survive a generation, and offspring of each.
        generations: Most generations, the first population included.
        promote: Low-fidelity allocations that a generation promotes.
        gamma: Exponent of the importance in the odds of mutating a unit.
        tolerance: Growth of the hypervolume (loss scaled by its range in the first generation, memory by the
            budget's) below which the search stops ...
        patience: ... over that many generations.

    Raises:
        ConfigError: If a number is out of range.
        ProfileError: If the profile holds no I_r.
    """

    name = "evolution"

    def __init__(self, problem: SearchProblem, population: int = 40, generations: int = 15, promote: int = 6,
                 gamma: float = 1.5, tolerance: float = 1e-3, patience: int = 3) -> None:
        if population < 2 or generations < 1 or promote < 1 or gamma < 0 or patience < 1:
            raise ConfigError("evolution needs population >= 2, generations >= 1, promote >= 1, gamma >= 0 and "
                              f"patience >= 1; got {population}, {generations}, {promote}, {gamma}, {patience}")
        self._problem = problem
        self._size, self._generations, self._promote = population, generations, promote
        self._tolerance, self._patience = tolerance, patience
        i_q = fidelity_importance(problem.profile)
        i_r = plasticity_importance(problem.profile, problem.space.ranks[-1])
        self._repair = Repair(problem.costs, problem.budget_bytes, i_q, i_r)
        self._operators = Operators(problem, self._repair, i_q, i_r, gamma)
        model_seed = int(problem.rng("evolution.promotion").integers(2**31))
        self._promotion = Promotion(problem, i_q, i_r, model_seed)
        self._rng = problem.rng("evolution")
        self._explore = Fidelity.HIGH if problem.low_steps is None else Fidelity.LOW
        self._archive = Archive(problem)
        self._batches = self._generation_batches()
        self._parents: tuple[IntArray, IntArray, FloatArray] | None = None
        self._queue: list[tuple[IntArray, Fidelity]] = []
        self._allowed_pending = 0
        self._scale: tuple[FloatArray, FloatArray] | None = None
        self.hypervolumes: list[float] = []

    def ask(self, n: int) -> list[Proposal]:
        """Return up to ``n`` proposals of the current generation; none while it is pending, or at the end."""
        while not self._queue and self._archive.waiting <= self._allowed_pending:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._queue, self._allowed_pending = batch, int(_STRAGGLERS * len(batch))
        taken, self._queue = self._queue[:n], self._queue[n:]
        return [Proposal(self._problem.space.decode(row), fidelity, "evolution") for row, fidelity in taken]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn of finished trials, failed ones and uniform baselines included."""
        self._archive.tell(trials)
        known = {(self._problem.space.encode(trial.allocation).tobytes(), trial.fidelity) for trial in trials
                 if self._problem.space.contains(trial.allocation)}
        self._queue = [(row, f) for row, f in self._queue if (row.tobytes(), f) not in known]

    def _generation_batches(self) -> Iterator[list[tuple[IntArray, Fidelity]]]:
        """Yield the rows to ask for next: offspring, then the promoted ones; the next parents are selected after."""
        for _ in range(self._generations):
            offspring, promoted = self._offspring(), []
            yield [(row, self._explore) for row in offspring]
            if self._explore is Fidelity.LOW:
                self._promotion.fit(*self._archive.pairs())
                rows, low = self._archive.unpromoted()
                fits = self._problem.costs.feasible(rows, self._problem.budget_bytes)
                rows, low = rows[fits], low[fits]
                order = np.argsort(self._promotion.estimate(rows, low), kind="stable")
                promoted = [rows[i] for i in order[:self._promote] if self._archive.claim(rows[i], Fidelity.HIGH)]
                yield [(row, Fidelity.HIGH) for row in promoted]
            self._select()
            recent = self.hypervolumes[-(self._patience + 1):]
            converged = len(recent) > self._patience and recent[-1] - recent[0] < self._tolerance
            if converged or not (offspring or promoted):
                return

    def _offspring(self) -> list[IntArray]:
        """Claim up to ``population`` new rows that fit, for the exploring fidelity."""
        rows: list[IntArray] = []
        if self._parents is None:
            rows += [r for r in warm_population(self._problem, self._repair, self._size, self._rng)
                     if self._archive.claim(r, self._explore)]
        for attempt in range(2 * _TRIES * self._size):
            if len(rows) == self._size:
                break
            row = None
            if self._parents is not None and attempt < _TRIES * self._size:
                parents, rank, crowding = self._parents
                first, second = (parents[tournament(rank, crowding, self._rng)] for _ in range(2))
                row = self._operators.child(first, second, self._rng)
            if row is None:
                row = random_near_budget(self._problem, self._rng)
            if self._archive.claim(row, self._explore):
                rows.append(row)
        return rows

    def _select(self) -> None:
        """Select the next parents from all known rows, by high-fidelity losses where known and estimates else."""
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
        self.hypervolumes.append(self._volume())

    def _volume(self) -> float:
        """Return the hypervolume of the rows that fit and have a high-fidelity loss."""
        rows, losses = self._archive.known(Fidelity.HIGH)
        totals = self._problem.costs.totals(rows)
        fits = totals <= self._problem.budget_bytes
        losses, totals = losses[fits], totals[fits]
        if len(losses) == 0:
            return 0.0
        points = np.column_stack([losses, totals]).astype(np.float64)
        if self._scale is None:
            low = np.array([losses.min(), totals.min()], dtype=np.float64)
            high = np.array([losses.max(), self._problem.budget_bytes], dtype=np.float64)
            self._scale = low, np.where(high > low, high - low, 1.0)
        # A reference a little beyond the worst keeps the first generation's extremes from counting nothing.
        return hypervolume((points - self._scale[0]) / self._scale[1], np.array([1.1, 1.1]))


class RandomSearch(ObservingSearcher):
    """Random allocations that use up the budget, to compare with."""

    name, stage = "random", "global"

    def _next(self) -> IntArray | None:
        return self._first_new(random_near_budget(self._problem, self._rng) for _ in range(_RANDOM_TRIES))
