"""One search on an emulated table: uniform baselines, then ask, evaluate and tell, all at counted cost."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.baselines import fill, uniform_baselines
from bench.emulator.oracle import EmulatorOracle, load_oracle
from bench.emulator.table import ReferenceBudget
from bench.peers.registry import make_player
from bench.search.methods import OTHER_TABLE, OTHERS, Entry
from bench.tasks import DATA, RATES, TASKS, predictors_of, task_config
from qra_bo.oracle.protocol import quiet
from qra_bo.searchers.base import Recommending, SearchProblem
from qra_bo.space import Allocation, SearchSpace
from qra_bo.study.cost import FORWARD_SHARE, cost_of
from qra_bo.study.search_loop import asked_of
from qra_bo.study.setting import BaselineRules, training_seeds
from qra_bo.study.state import is_uniform
from qra_bo.trials import Fidelity, Proposal, Trial, TrialResult, TrialSpec, TrialState

FREE_REFUSALS = 40
"""Refusals of an emulator that a search need not pay for: where its table ends says nothing of a method."""


@dataclass(frozen=True)
class Arena:
    """A task, an emulator of it and a budget.

    Args:
        oracle: Emulated.
        budget: The reference budget.
        problem: For seed 0.
        rules: Of the uniform baselines.
    """

    oracle: EmulatorOracle
    budget: ReferenceBudget
    problem: SearchProblem
    rules: BaselineRules

    @property
    def name(self) -> str:
        """E.g. ``"plays, boosted, uniform:4,4"``."""
        return f"{self.oracle.table.facts.task}, {self.oracle.emulator.family}, {self.budget.text}"

    @property
    def equivalent(self) -> float:
        """Cost of one high-fidelity evaluation in training tokens."""
        facts = self.oracle.table.facts
        return facts.steps * facts.step_tokens + FORWARD_SHARE * facts.eval_tokens

    @property
    def own_rate(self) -> float:
        """The learning rate of the table's own rows."""
        return self.oracle.emulator.rate * self.oracle.table.facts.learning_rate

    def true_loss(self, allocation: Allocation) -> float:
        """The emulator's loss without noise."""
        return float(self.oracle.losses_of(allocation)[-1])


def arenas(folder: Path, families: Sequence[str], noise: float | None = None) -> list[Arena]:
    """Every emulator and budget of one table; each emulator is fitted once. ``noise``: as of ``EmulatorOracle``."""
    task = folder.name
    config = task_config("plays", None)  # the space is the model's, whatever the text
    space, predictors = predictors_of(config)
    found = []
    for family in families:
        oracle = load_oracle(folder, family, space, noise=noise)
        found += [make_arena(oracle, space, budget, predictors[budget.scope]) for budget in oracle.table.facts.budgets]
    if not found:
        raise ValueError(f"the table {task} has no budget")
    return found


def make_arena(oracle: EmulatorOracle, space: SearchSpace, budget: ReferenceBudget, predict: Any) -> Arena:
    """One budget of an oracle."""
    facts = oracle.table.facts
    largest = min(min(m.out_features, m.in_features) for u in space.units for m in u.linears)
    problem = SearchProblem(space, oracle.table.costs[budget.scope], budget.bytes, oracle.profile(quiet), facts.steps,
                            facts.record_at[-1], 0, step_tokens=facts.step_tokens)
    return Arena(oracle, budget, problem, BaselineRules(space.n_units, facts.formats, largest, budget.bytes, predict))


class Game:
    """A search under way: what was spent, and the incumbent after every evaluation.

    Args:
        arena: Where.
        seed: Of the search; its noise is that of the training seed that a run with this seed would use.
    """

    def __init__(self, arena: Arena, seed: int) -> None:
        self.arena, self.seed = arena, seed
        arena.oracle.begin()
        self.train_seed, _ = training_seeds(seed, 0)
        cost = arena.oracle.profile_cost
        self.spent = cost["training_tokens"] + FORWARD_SHARE * cost["forward_tokens"]
        self.trace: list[tuple[float, float]] = []
        self.best: tuple[float, Allocation] | None = None
        self.best_uniform = np.inf
        self.trials: list[Trial] = []
        self._bits = {f.name: f.bits for f in arena.problem.space.formats}
        self.refused = self.broken = 0
        self._asked = set[tuple[Allocation, Fidelity]]()

    def evaluate(self, proposal: Proposal) -> Trial:
        """Evaluate, count and note. A promotion pays its further steps alone; allocations that the emulator refuses
        pay nothing at first, and then in full."""
        arena, high = self.arena, proposal.fidelity is Fidelity.HIGH
        steps = arena.problem.high_steps if high else arena.problem.low_steps or arena.problem.high_steps
        request = TrialSpec(proposal.allocation, steps, arena.problem.high_steps, self.train_seed,
                                    learning_rate=arena.own_rate)
        asked = proposal.allocation, proposal.fidelity
        self.broken += asked in self._asked or not arena.rules.fits(proposal.allocation)
        self._asked.add(asked)
        measured = arena.oracle.evaluate(request, quiet)
        if measured.state is not TrialState.OK:
            self.refused += 1
            if self.refused > FREE_REFUSALS:
                full = round(arena.equivalent * steps / arena.problem.high_steps)
                measured = replace(measured, training_tokens=full)
        evaluation = Trial(len(self.trials), proposal.allocation,
                                tuple(self._bits[f] for f in proposal.allocation.formats), proposal.stage,
                                proposal.fidelity, request, self.seed, measured,
                                arena.rules.predict_bytes(proposal.allocation))
        self.spent += cost_of(evaluation).tokens
        self.trials.append(evaluation)
        if high and measured.loss is not None and arena.rules.fits(proposal.allocation):
            if self.best is None or measured.loss < self.best[0]:
                self.best = measured.loss, proposal.allocation
            if proposal.stage == "baseline" or is_uniform(proposal.allocation):
                self.best_uniform = min(self.best_uniform, arena.true_loss(proposal.allocation))
        return evaluation

    def note(self, recommended: Sequence[Allocation] = ()) -> None:
        """The incumbent as it stands: the first recommended allocation, else the one with the least loss seen."""
        if self.best is not None:
            incumbent = recommended[0] if recommended else self.best[1]
            self.trace.append((self.spent / self.arena.equivalent, self.arena.true_loss(incumbent)))

    def baselines(self, limit: int | None = None) -> list[Trial]:
        """The uniform choices that fit, and the best of them filled; with a ``limit`` those that a run would try."""
        choices = uniform_baselines(self.arena.rules, self.arena.problem.profile)
        first = len(choices) if limit is None else max(1, limit - 1)
        done = [self._anchor(a) for a in choices[:first]]
        usable = [e for e in done if e.loss is not None]
        if usable and limit != 1:
            filled = fill(self.arena.rules, min(usable, key=lambda e: e.loss or 0.0).allocation)
            is_new = filled not in {e.allocation for e in done}
            done += [self._anchor(a) for a in ([filled] if is_new else choices[first:first + 1])]
        return done

    def _anchor(self, allocation: Allocation) -> Trial:
        evaluation = self.evaluate(Proposal(allocation, Fidelity.HIGH, "baseline"))
        self.note()
        return evaluation


def play(arena: Arena, entry: Entry, seed: int, equivalents: float) -> dict[str, Any]:
    """One search to the end of its effort, or until its method has nothing left to propose.

    Returns:
        JSON values: the trace of ``(cost in equivalents, noise-free loss of the incumbent)``, the best uniform choice's
        loss, the five best allocations found with their losses, and the CPU seconds of the method itself.
    """
    game = Game(arena, seed)
    searcher = make_player(entry.method, replace(arena.problem, seed=seed), with_files(arena, entry.options),
                           equivalents)
    baselines = game.baselines()
    after_baselines = game.spent / arena.equivalent
    searcher.tell(on_ladders(arena.problem.space, baselines) if entry.kind in OTHERS else baselines)
    seconds = 0.0
    while game.spent < equivalents * arena.equivalent:
        start = time.process_time()
        proposals = asked_of(searcher)
        seconds += time.process_time() - start
        if not proposals:
            break
        told = [game.evaluate(p) for p in proposals]
        start = time.process_time()
        searcher.tell(told)
        recommended = searcher.recommend() if entry.recommended and isinstance(searcher, Recommending) else ()
        seconds += time.process_time() - start
        game.note(recommended)
    return {"arena": arena.name, "task": arena.oracle.table.facts.task, "emulator": arena.oracle.emulator.family,
            "budget": arena.budget.text, "method": entry.name, "kind": entry.kind, "settings": entry.settings_sha256,
            "note": entry.note, "seed": seed, "equivalents": equivalents, "best_uniform": game.best_uniform,
            "after_baselines": round(after_baselines, 4),
            "trace": [[round(cost, 4), loss] for cost, loss in game.trace], "finds": finds(game),
            "refused": game.refused, "broken": game.broken, "cpu_seconds": round(seconds, 3),
            "rows_sha256": arena.oracle.describe()["data_sha256"]}


def with_files(arena: Arena, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options with the file of the table that is not the arena's, where one names it."""
    return {key: str(DATA / other_task(arena) / RATES) if value == OTHER_TABLE else value
            for key, value in options.items()}


def other_task(arena: Arena) -> str:
    """Return the text of the table that is not the arena's."""
    (other,) = (task for task in TASKS if task != arena.oracle.table.facts.task)
    return other


def on_ladders(space: SearchSpace, evaluations: Sequence[Trial]) -> list[Trial]:
    """Anchors for methods that know ranks on the ladder alone: each at the next rank below, of those alike the first,
    or the one that was on the ladder."""
    ranks = np.array(space.ranks)
    found: dict[Allocation, Trial] = {}
    for e in evaluations:
        below = tuple(int(ranks[max(0, np.searchsorted(ranks, r, side="right") - 1)]) for r in e.allocation.ranks)
        allocation = Allocation(e.allocation.formats, below)
        told = replace(e, allocation=allocation, spec=replace(e.spec, allocation=allocation))
        if e.allocation == allocation or allocation not in found:
            found[allocation] = told
    return list(found.values())


def told_of(problem: SearchProblem, allocations: Sequence[Allocation], losses: Sequence[float]) -> list[Trial]:
    """Return full-fidelity trials of allocations and their losses as a searcher is told of them, numbered in order."""
    steps, found = problem.high_steps, []
    for number, (a, loss) in enumerate(zip(allocations, map(float, losses), strict=True)):
        result = TrialResult(TrialState.OK, loss, None, ((steps, loss),), steps, 1, 1, None, 0.0)
        found.append(Trial(number, a, problem.space.bits(a), "global", Fidelity.HIGH,
                           TrialSpec(a, steps, steps, 0, 1.0), 0, result, 0))
    return found


def finds(game: Game) -> list[dict[str, Any]]:
    """The best allocations as the search saw them."""
    fits = game.arena.rules.fits
    seen = {e.allocation: e for e in sorted(game.trials, key=lambda e: -(e.loss or np.inf))
            if e.fidelity is Fidelity.HIGH and e.loss is not None and fits(e.allocation)}
    best = sorted(seen.values(), key=lambda e: e.loss or np.inf)[:5]
    return [{**e.allocation.to_json(), "loss": e.loss, "true_loss": game.arena.true_loss(e.allocation)} for e in best]
