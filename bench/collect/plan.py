"""Planned contents of a table of trials: a function of a seed and of the present contents.

Uniform choices, random ones that fit, random ones that use up each reference budget, knapsack solutions for randomly
weighted sensitivities, neighbours of the incumbents, and repeats on two more training seeds. All kinds grow together,
so that a stopped collection has the same proportions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.collect.writing import is_known
from bench.emulator.table import TableRow, TaskFacts, pooled, same_rate
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.evolution.variation import random_near_budget
from qra_bo.searchers.structured.features import rank_scale
from qra_bo.sensitivity import RISE, sensitivity_scales
from qra_bo.space import Allocation, uniform
from qra_bo.space.lagrangian import solve_relaxed
from qra_bo.space.neighbourhood import neighbours_within
from qra_bo.study.baselines import calibration_choices, largest_rank, uniform_baselines
from qra_bo.study.setting import BaselineRules

CALIBRATION, NEIGHBOUR, REPEAT = "calibration", "neighbour", "repeat"
CALIBRATED_FORMAT, CALIBRATED_CHOICES = "nf4", 2
UNIFORM_RANKS = (1, 4, 16, 32)
GOOD, FURTHEST, LEAST_USE = 8, 6, 0.98
"""Of how many best allocations neighbours are drawn, how many edits away, and what share of the budget they use."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many allocations of each origin; those with a budget are for each of the budgets.

    Args:
        designed: Knapsacks over sensitivities under random beliefs.
        near: Random ones that use up the budget.
        wide: Random ones within any number of bytes up to the largest budget.
        neighbours: Of the best known.
        repeats: Allocations that are repeated on the second and the third training seed, in all.
    """

    designed: int = 16
    near: int = 12
    wide: int = 12
    neighbours: int = 26
    repeats: int = 16


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """The next evaluation."""

    allocation: Allocation
    origin: str
    train_seed: int
    lr_scale: float


class Plan:
    """Says what to evaluate next.

    Args:
        facts: Of the table.
        problems: The search problem of every budget of ``facts``, in that order.
        rules: What decides the uniform baselines of each.
        seed: Another seed draws other allocations.
        sizes: See there.
    """

    def __init__(self, facts: TaskFacts, problems: Sequence[SearchProblem], rules: Sequence[BaselineRules], seed: int,
                 sizes: Sizes | None = None) -> None:
        self._facts, self._seed, self._sizes = facts, seed, sizes or Sizes()
        self._problems, self._rules = tuple(replace(p, seed=seed) for p in problems), tuple(rules)
        self._space = self._problems[0].space
        self._fixed = list(self._first())

    @property
    def total(self) -> int:
        """Evaluations of a whole table of one seed, those that coincide counted once."""
        fixed = {allocation for _, allocation in self._fixed}
        repeats = self._sizes.repeats * (len(self._facts.train_seeds) - 1)
        return (len(self.calibration()) + len(fixed) + self._sizes.neighbours * len(self._problems) + repeats)

    def next(self, rows: Sequence[TableRow]) -> PlannedTrial | None:
        """The next evaluation, or ``None`` once the table is whole."""
        first, scale = self._facts.train_seeds[0], self.calibrated(rows)
        if scale is None:
            return self._missing_calibration(rows)[0]
        missing = [(origin, a) for origin, a in self._fixed if not is_known(rows, a, first, scale)]
        done = [sum(row.origin == f"{NEIGHBOUR} {b.text}" for row in rows) for b in self._facts.budgets]
        begun = self._repeated(rows)
        open_repeat = self._open_repeat(rows, scale, begun)
        if open_repeat is not None:
            return open_repeat
        ways: list[tuple[float, Callable[[], PlannedTrial | None]]] = [
            (1.0 - len(missing) / max(1, len(self._fixed)),
             lambda: PlannedTrial(missing[0][1], missing[0][0], first, scale) if missing else None),
            (sum(done) / max(1, self._sizes.neighbours * len(done)), lambda: self._near_best(done, rows, scale)),
            (len(begun) / max(1, self._sizes.repeats), lambda: self._repeat(rows, scale, begun))]
        for _, way in sorted(ways, key=lambda each: each[0]):
            wanted = way()
            if wanted is not None:
                return wanted
        return None

    def calibrated(self, rows: Sequence[TableRow]) -> float | None:
        """The table's factor on the learning rate; ``None`` while rows are missing that decide it."""
        return None if self._missing_calibration(rows) else lr_scale(self._facts, rows)

    def _missing_calibration(self, rows: Sequence[TableRow]) -> list[PlannedTrial]:
        tried = {(row.allocation, row.lr_scale) for row in rows if row.origin == CALIBRATION}
        return [PlannedTrial(a, CALIBRATION, self._facts.train_seeds[0], scale) for a, scale in self.calibration()
                if (a, scale) not in tried]

    def calibration(self) -> list[tuple[Allocation, float]]:
        """Uniform choices of the uniform baselines' ranks and down to a quarter of them, each at every factor."""
        choices: dict[Allocation, None] = {}
        for rules in self._rules:
            top = uniform(rules.n_units, CALIBRATED_FORMAT, largest_rank(rules, CALIBRATED_FORMAT))
            choices.update(dict.fromkeys(calibration_choices(top, CALIBRATED_CHOICES)))
        return [(a, scale) for scale in self._facts.lr_scales for a in choices]

    def _first(self) -> Iterator[tuple[str, Allocation]]:
        """Everything that does not depend on what was found, the origins mixed evenly."""
        sizes, kinds = self._sizes, []
        ranks = [r for r in UNIFORM_RANKS if r in self._space.ranks.values]
        plain = [uniform(self._space.n_units, f.name, r) for f in self._space.formats for r in ranks]
        baselines = [a for rules, p in zip(self._rules, self._problems, strict=True)
                   for a in uniform_baselines(rules, p.profile)]
        kinds.append([("uniform", a) for a in dict.fromkeys([*baselines, *plain])])
        for budget, problem in zip(self._facts.budgets, self._problems, strict=True):
            rng = problem.rng(f"designed {budget.text}")
            kinds.append([(f"designed {budget.text}", designed(problem, rng)) for _ in range(sizes.designed)])
            rng = problem.rng(f"near {budget.text}")
            kinds.append([(f"near {budget.text}", self._space.decode(random_near_budget(problem, rng)))
                          for _ in range(sizes.near)])
        kinds.append([("wide", a) for a in self._wide(sizes.wide)])
        placed = [((i + 0.5) / len(kind), k, origin, a) for k, kind in enumerate(kinds)
                  for i, (origin, a) in enumerate(kind)]
        for _, _, origin, allocation in sorted(placed, key=lambda place: place[:2]):
            yield origin, allocation

    def _wide(self, n: int) -> list[Allocation]:
        problem = self._problems[0]
        rng = problem.rng("wide")
        lowest = int(problem.costs.totals(np.zeros((1, 2 * self._space.n_units), dtype=np.int64))[0])
        budgets = lowest + (problem.budget_bytes - lowest) * rng.uniform(0.05, 1.3, n)
        return [self._space.decode(random_near_budget(replace(problem, budget_bytes=int(b)), rng)) for b in budgets]

    def _near_best(self, done: Sequence[int], rows: Sequence[TableRow], scale: float) -> PlannedTrial | None:
        """A neighbour of the best within the budget that has fewer of them so far, ``done`` of each."""
        index = int(np.argmin(done))
        if done[index] >= self._sizes.neighbours:
            return None
        found = self._neighbour(index, done[index], rows, scale)
        origin = f"{NEIGHBOUR} {self._facts.budgets[index].text}"
        return None if found is None else PlannedTrial(found, origin, self._facts.train_seeds[0], scale)

    def _neighbour(self, index: int, number: int, rows: Sequence[TableRow], scale: float) -> Allocation | None:
        """A random allocation some edits from one of the best within a budget; ``None`` where nothing is known."""
        problem, first = self._problems[index], self._facts.train_seeds[0]
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, index, number, 0x4E]))
        good = [a for a in self._ranked(index, rows, scale) if self._space.contains(a)][:GOOD]
        for _ in range(100 if good else 0):
            centre = self._space.encode(good[int(rng.integers(len(good)))])
            near = neighbours_within(self._space, centre, int(rng.integers(1, FURTHEST + 1)), costs=problem.costs,
                                     budget_bytes=problem.budget_bytes, rng=rng, cap=2000)
            near = near[problem.costs.totals(near) >= LEAST_USE * problem.budget_bytes]
            if len(near):
                found = self._space.decode(near[int(rng.integers(len(near)))])
                if not is_known(rows, found, first, scale):
                    return found
        return None

    def _ranked(self, index: int, rows: Sequence[TableRow], scale: float) -> list[Allocation]:
        """Allocations within a budget by increasing loss at the first training seed."""
        budget, first = self._facts.budgets[index], self._facts.train_seeds[0]
        inside = [row for row in pooled(rows) if row.train_seed == first and same_rate(row.lr_scale, scale)
                  and row.bytes[budget.scope] <= budget.bytes]
        return list(dict.fromkeys(row.allocation for row in sorted(inside, key=lambda r: r.loss or 0.0)))

    def _repeated(self, rows: Sequence[TableRow]) -> list[Allocation]:
        """Allocations whose repeats were begun, in that order."""
        return list(dict.fromkeys(row.allocation for row in rows if row.origin == REPEAT))

    def _open_repeat(self, rows: Sequence[TableRow], scale: float, begun: Sequence[Allocation]) -> PlannedTrial | None:
        """What finishes the repeats of an allocation that were begun."""
        return next((PlannedTrial(allocation, REPEAT, seed, scale) for allocation in begun
                     for seed in self._facts.train_seeds[1:] if not is_known(rows, allocation, seed, scale)), None)

    def _repeat(self, rows: Sequence[TableRow], scale: float, begun: Sequence[Allocation]) -> PlannedTrial | None:
        """In turn, the best within each budget and any other near it, where repeats are still wanted."""
        if len(begun) >= self._sizes.repeats:
            return None
        turn = len(begun)
        index, best = turn % len(self._problems), turn // len(self._problems) % 2 == 0
        candidates = [a for a in self._ranked(index, rows, scale) if a not in begun]
        if not candidates:
            return None
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, turn, 0x52]))
        chosen = candidates[0 if best else int(rng.integers(max(1, len(candidates) // 2)))]
        return PlannedTrial(chosen, REPEAT, self._facts.train_seeds[1], scale)


def designed(problem: SearchProblem, rng: np.random.Generator) -> Allocation:
    """The best allocation within the budget under a random belief of what damage and ranks are worth."""
    damage, _ = sensitivity_scales(problem.profile, RISE)  # what the rows of the tables were designed with
    n_units, n_formats, _ = problem.costs.shape
    believed = damage ** rng.uniform(0.3, 1.0) * rng.lognormal(0.0, 0.5, (n_units, 1))
    believed = believed * rng.lognormal(0.0, 0.3, n_formats)[None, :]
    rate = np.exp(rng.uniform(np.log(0.03), np.log(2.0)))
    worth = rate * rank_scale(problem) / n_units
    wants = rng.lognormal(0.0, 0.3, n_units)
    table = believed[:, :, None] / max(believed.mean(axis=1).sum(), 1e-12) - wants[:, None, None] * worth[None, None, :]
    return problem.space.decode(solve_relaxed(table, problem.costs, problem.budget_bytes))


def lr_scale(facts: TaskFacts, rows: Sequence[TableRow]) -> float:
    """The calibrated factor on the learning rate: where the mean loss over the uniform choices tried is least."""
    tried = [row for row in rows if row.origin == CALIBRATION]
    allocations = {row.allocation for row in tried}
    trials = []
    for scale in facts.lr_scales:
        losses = [row.loss for row in tried if row.lr_scale == scale and row.loss is not None]
        if allocations and len(losses) == len(allocations):
            trials.append((scale, float(np.mean(losses))))
    return best_scale(trials)[0] if trials else facts.lr_scales[0]


def best_scale(trials: Sequence[tuple[float, float]]) -> tuple[float, bool]:
    """Return the factor with the least loss, and whether it lies inside those tried.

    Near its optimum the loss is a parabola in the logarithm of the rate, and differences between the factors tried
    are as small as the noise: the vertex of the parabola through the best and its neighbours is used, where it is one
    and lies between them.

    Args:
        trials: ``(factor, mean loss)`` by increasing factor, at least one.
    """
    scales, losses = np.log([s for s, _ in trials]), np.array([loss for _, loss in trials])
    at = int(losses.argmin())
    inside = 0 < at < len(trials) - 1 if len(trials) > 2 else True
    if len(trials) >= 3:
        first = min(max(at - 1, 0), len(trials) - 3)  # the best and its neighbours: far trials are on no parabola
        near = slice(first, first + 3)
        curvature, slope, _ = np.polyfit(scales[near], losses[near], 2)
        if curvature > 0:
            vertex = -slope / (2 * curvature)
            if scales[near].min() < vertex < scales[near].max():
                return float(f"{np.exp(vertex):.3g}"), True  # few digits, for it is part of the trials' keys
    return trials[at][0], inside
