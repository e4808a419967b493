"""Rules that every searcher keeps. A searcher joins by subclassing ``SearcherSuite`` with one line: ``make = ...``."""

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.searchers.base import Searcher, SearchProblem
from qra_bo.searchers.structured.searcher import StructuredSearch
from qra_bo.space import Allocation
from qra_bo.trials import Fidelity, Proposal, Trial, TrialResult, TrialSpec, TrialState
from tests.spaces import corners, make_costs, make_space

ROOT = Path(__file__).parents[2]
_Record = tuple[list[Proposal], list[Trial]]


def make_problem(n_units: int = 5, *, seed: int = 0, low_steps: int | None = 6, ranks: tuple[int, ...] = (1, 2, 4, 8),
                 share: float = 0.35, n_formats: int = 4) -> tuple[SearchProblem, SyntheticOracle]:
    """A small problem whose budget binds, and its oracle."""
    space = make_space(n_units, make_space(1).formats[:n_formats], ranks)
    costs = make_costs(space)
    low, high = (int(costs.totals(row[None, :])[0]) for row in corners(space))
    oracle = SyntheticOracle(space, 7, high_steps=24)
    profile = oracle.profile(lambda *_: None)
    problem = SearchProblem(space, costs, int(low + share * (high - low)), profile, 24, low_steps, seed,
                            step_tokens=512)
    return problem, oracle


def evaluate(problem: SearchProblem, oracle: SyntheticOracle, proposal: Proposal, number: int,
             failed: bool = False) -> Trial:
    steps = problem.high_steps if proposal.fidelity is Fidelity.HIGH else problem.low_steps or problem.high_steps
    request = TrialSpec(proposal.allocation, steps, problem.high_steps, 0, 2e-3)
    measurement = oracle.evaluate(request, lambda *_: None)
    if failed:
        measurement = TrialResult(TrialState.OOM, None, None, (), 1, 0, 0, None, 0.0, 0.0, "out of memory")
    total = int(problem.costs.totals(problem.space.encode(proposal.allocation)[None, :])[0])
    return Trial(number, proposal.allocation, problem.space.bits(proposal.allocation), proposal.stage,
                      proposal.fidelity, request, problem.seed, measurement, total)


def play(searcher: Searcher, problem: SearchProblem, oracle: SyntheticOracle, limit: int,
         batches: Sequence[int] = (1, 3, 2), fails: Callable[[int], bool] = lambda _: False) -> list[_Record]:
    """Ask, evaluate and tell until ``limit`` proposals or none come; return proposals and trials by round."""
    rounds: list[_Record] = []
    number = 0
    while number < limit:
        proposals = searcher.ask(min(batches[len(rounds) % len(batches)], limit - number))
        if not proposals:
            break
        told = [evaluate(problem, oracle, p, number + i, fails(number + i)) for i, p in enumerate(proposals)]
        number += len(told)
        searcher.tell(told)
        rounds.append((proposals, told))
    return rounds


def proposals_of(rounds: list[_Record]) -> list[Proposal]:
    return [p for proposals, _ in rounds for p in proposals]


def as_json(proposals: list[Proposal]) -> str:
    return json.dumps([[p.allocation.to_json(), p.fidelity.value, p.stage] for p in proposals])


@functools.cache
def fresh_process() -> subprocess.Popen[str]:
    """One interpreter with another hash seed, which plays the suites that it is named, one a line of its input."""
    code = ("import sys; from importlib import import_module; from tests.conformance.searcher import usual_proposals\n"
            "for line in sys.stdin:\n"
            "    module, name = line.split()\n"
            "    print(usual_proposals(getattr(import_module(module), name)), flush=True)")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, env={**os.environ, "PYTHONHASHSEED": "4711"})

    def end() -> None:
        process.communicate()

    atexit.register(end)
    return process


def unlearned(problem: SearchProblem, n_first: int, **options: Any) -> StructuredSearch:
    """Return a search without learned rates that makes ``n_first`` proposals before it has a model."""
    searcher = StructuredSearch(problem, **options)
    del searcher._prior[n_first:]
    return searcher


@functools.cache
def usual(suite: "type[SearcherSuite]") -> tuple[SearchProblem, SyntheticOracle, list[_Record]]:
    """The usual problem, its oracle, and what a suite's searcher does there."""
    problem, oracle = make_problem()
    return problem, oracle, play(suite.make(problem), problem, oracle, suite.limit)


def usual_proposals(suite: "type[SearcherSuite]") -> str:
    return as_json(proposals_of(usual(suite)[2]))


class SearcherSuite:
    """Subclass as ``TestX`` with ``make = staticmethod(lambda problem: X(problem, ...))``.

    ``limit`` bounds the evaluations of a test; ``seedless`` says that a method draws nothing at random.
    """

    make: Callable[[SearchProblem], Searcher]
    limit = 40
    seedless = False

    @pytest.mark.parametrize("low_steps", [6, None])
    def test_proposals_are_admissible_and_new(self, low_steps: int | None) -> None:
        if low_steps is None:
            problem, oracle = make_problem(low_steps=None)
            rounds = play(self.make(problem), problem, oracle, self.limit)
        else:
            problem, _, rounds = usual(type(self))
        searcher, proposals = self.make(problem), proposals_of(rounds)
        assert isinstance(searcher, Searcher)
        assert searcher.name
        assert proposals
        for (asked, _), size in zip(rounds, (1, 3, 2) * self.limit, strict=False):
            assert len(asked) <= size
        assert all(problem.space.contains(p.allocation) and problem.fits(p.allocation) for p in proposals)
        assert len({(p.allocation, p.fidelity) for p in proposals}) == len(proposals)
        assert all(p.stage for p in proposals)
        if low_steps is None:
            assert all(p.fidelity is Fidelity.HIGH for p in proposals)

    def test_same_asks_and_trials_give_the_same_proposals_in_a_fresh_process(self) -> None:
        process = fresh_process()
        process.stdin.write(f"{type(self).__module__} {type(self).__qualname__}\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == usual_proposals(type(self))

    def test_seed_matters_or_there_is_none_and_global_state_is_kept(self) -> None:
        problem, oracle = make_problem(seed=1)
        before = np.random.get_state()[1].copy()
        other = as_json(proposals_of(play(self.make(problem), problem, oracle, self.limit)))
        np.testing.assert_array_equal(np.random.get_state()[1], before)
        assert (other == usual_proposals(type(self))) == self.seedless

    def test_unrequested_trials_are_not_proposed_again(self) -> None:
        problem, oracle, rounds = usual(type(self))
        told = [e for _, told in rounds for e in told][:self.limit // 2]
        searcher = self.make(problem)
        searcher.tell(told)
        known = {(e.allocation, e.fidelity) for e in told}
        for p in proposals_of(play(searcher, problem, oracle, self.limit // 2)):
            assert (p.allocation, p.fidelity) not in known

    def test_search_goes_on_after_failures_and_uniform_baselines(self) -> None:
        problem, oracle = make_problem()
        searcher = self.make(problem)
        n, formats, ranks = problem.space.n_units, problem.space.formats, problem.space.ranks
        lowest, too_large = (Allocation((f.name,) * n, (r,) * n) for f, r in ((formats[0], ranks[0]),
                                                                              (formats[-1], ranks[-1])))
        baselines = [Proposal(a, Fidelity.HIGH, "baseline") for a in (lowest, too_large)]
        searcher.tell([evaluate(problem, oracle, p, 900 + i) for i, p in enumerate(baselines)])
        reference = Allocation(("fp16",) * n, (ranks[-1],) * n)
        request = TrialSpec(reference, problem.high_steps, problem.high_steps, 0, 2e-3)
        measured = oracle.evaluate(request, lambda *_: None)
        searcher.tell([Trial(950, reference, (16,) * n, "reference", Fidelity.HIGH, request, 0, measured, 10**12)])
        rounds = play(searcher, problem, oracle, self.limit, fails=lambda i: i % 3 == 0)
        proposals = proposals_of(rounds)
        assert proposals
        assert all(problem.fits(p.allocation) for p in proposals)
        assert not {p.allocation for p in proposals} & {p.allocation for p in baselines}
        assert len({(p.allocation, p.fidelity) for p in proposals}) == len(proposals)

    def test_failures_alone_do_not_break_it(self) -> None:
        problem, oracle = make_problem()
        proposals = proposals_of(play(self.make(problem), problem, oracle, 8, fails=lambda _: True))
        assert len({(p.allocation, p.fidelity) for p in proposals}) == len(proposals)

    @pytest.mark.parametrize("low_steps", [6, None])
    def test_tiny_space_is_exhausted_without_an_error(self, low_steps: int | None) -> None:
        problem, oracle = make_problem(2, ranks=(1, 4), share=0.6, low_steps=low_steps, n_formats=2)
        searcher = self.make(problem)
        size = 2 ** (2 * problem.space.n_units)
        proposals = proposals_of(play(searcher, problem, oracle, 3 * size))
        assert len(proposals) < 3 * size
        assert searcher.ask(4) == []
        assert all(problem.fits(p.allocation) for p in proposals)

    def test_a_space_of_one_allocation(self) -> None:
        problem, oracle = make_problem(2, ranks=(4,), n_formats=1, share=1.0)
        proposals = proposals_of(play(self.make(problem), problem, oracle, 5))
        assert len(proposals) <= 2
        assert len({p.allocation for p in proposals}) <= 1
