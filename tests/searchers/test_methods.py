"""Every method of ``conf/method`` in the engine on a planted landscape; two stages; options."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.methods import METHODS, method_target
from qra_bo.config import load_config
from qra_bo.execution.base import InProcessExecutor, failure
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.searchers.base import Searcher, SearchProblem, make_searcher
from qra_bo.searchers.two_stages import TwoStages
from qra_bo.space import uniform
from qra_bo.study.engine import RunOutcome
from qra_bo.study.state import ENGINE_STAGES
from qra_bo.trials import Fidelity, Proposal, Trial, TrialSpec, TrialState
from tests.study.problem import EQUIVALENT, HIGH, TOKENS, Walk, comparable, make_problem, make_space
from tests.study.problem import run as problem_run
from tests.study.test_pieces import PROFILE

NAMES = sorted(path.stem for path in METHODS.glob("*.yaml"))
OPTIONS: dict[str, dict[str, Any]] = {
    "evolution": {"population": 4, "generations": 3, "promote": 2},
    "autoqra": {"first": {"population": 4, "generations": 2, "promote": 2}, "share": .3}}


def run(folder: Path, method: str, equivalents: int = 14) -> RunOutcome:
    oracle = SyntheticOracle(make_space(), 3, high_steps=HIGH, tokens_per_step=TOKENS, eval_tokens=15,
                             calibration_tokens=15, checkpoints=folder.parent / "checkpoints")

    def build(problem: SearchProblem) -> Searcher:
        return make_searcher(method_target(method, OPTIONS.get(method)), problem)

    return problem_run(folder, InProcessExecutor(oracle), build, fine_tunes=False, method=method,
                       effort__max_full_trials=equivalents, calibrate__lr_scales=[1.0])


@pytest.mark.parametrize("method", [name for name in NAMES if name != "default" and not name.startswith("_")])
def test_method_searches_and_resumes_to_the_same(tmp_path: Path, method: str) -> None:
    outcome = run(tmp_path / "a", method)
    searched = [e for e in outcome.study.trials if e.stage not in ENGINE_STAGES]
    assert len(searched) >= 3
    raw = (tmp_path / "a" / "trials.jsonl").read_bytes()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "trials.jsonl").write_bytes(raw[:round(.6 * len(raw))])
    resumed = run(tmp_path / "b", method)
    assert [e.spec for e in resumed.study.trials] == [e.spec for e in outcome.study.trials]
    assert comparable(resumed.best) == comparable(outcome.best)
    assert outcome.study.search_cost.tokens < 16 * EQUIVALENT


def test_autoqra_spends_its_share_on_evolution_first(tmp_path: Path) -> None:
    stages = [e.stage for e in run(tmp_path, "autoqra", 24).study.trials if e.stage not in ENGINE_STAGES]
    assert set(stages) == {"evolution", "trust_region"}
    assert stages == sorted(stages)


class Scripted(Walk):
    """Fixed proposals; keeps the trials it learns of."""

    def __init__(self, problem: SearchProblem, stage: str, n: int) -> None:
        super().__init__(problem)
        self._queue = [Proposal(uniform(4, "hqq2", r), Fidelity.HIGH, stage) for r in (1, 2, 4, 8)[:n]]

    def ask(self, n: int) -> list[Proposal]:
        taken, self._queue = self._queue[:n], self._queue[n:]
        return taken

    def tell(self, evaluations: Sequence[Trial]) -> None:
        self.told += evaluations


def two_stages(problem: SearchProblem, first: Searcher, second: Searcher, trials: float) -> TwoStages:
    return TwoStages(replace(problem, max_full_trials=trials), lambda _: first, lambda _: second, share=1.0)


def evaluated(problem: SearchProblem, proposal: Proposal) -> Trial:
    request = TrialSpec(proposal.allocation, problem.high_steps, problem.high_steps, 0, 2e-3)
    m = failure(TrialState.FAILED, "", problem.high_steps, 0.0)
    return Trial(1, proposal.allocation, (2,) * 4, proposal.stage, proposal.fidelity, request, 0, m, 0)


def test_two_stages_wait_for_the_first_and_both_learn_of_everything() -> None:
    problem = make_problem(PROFILE)
    first, second = Scripted(problem, "one", 4), Scripted(problem, "two", 2)
    both = two_stages(problem, first, second, 4.0)
    asked = both.ask(2)
    assert [p.stage for p in asked] == ["one", "one"]
    both.tell([evaluated(problem, asked[0])])
    waiting = both.ask(4)
    assert [p.stage for p in waiting] == ["one", "one"]  # half the share is left
    both.tell([evaluated(problem, p) for p in (asked[1], waiting[0])])
    assert [p.stage for p in both.ask(1)] == ["two"]  # the share is asked for: a straggler does not hold the second
    both.tell([evaluated(problem, waiting[1])])
    assert [p.stage for p in both.ask(1)] == ["two"]
    assert len(first.told) == len(second.told) == 4


@pytest.mark.parametrize(("charged", "stage"), [(HIGH * TOKENS, "two"), (0, "one")])
def test_a_failure_without_steps_counts_where_it_was_charged(charged: int, stage: str) -> None:
    problem = make_problem(PROFILE)
    both = two_stages(problem, Scripted(problem, "one", 4), Scripted(problem, "two", 2), 1.0)
    failed = evaluated(problem, both.ask(1)[0])
    both.tell([replace(failed, result=replace(failed.result, new_steps=0, training_tokens=charged))])
    assert [p.stage for p in both.ask(1)] == [stage]


def test_share_that_was_spent_before_is_not_given_again() -> None:
    problem = make_problem(PROFILE)
    first = Scripted(problem, Walk.name, 4)
    before = [evaluated(problem, proposal) for proposal in first.ask(2)]
    for trials, stage in ((3.0, Walk.name), (2.0, "two")):
        both = two_stages(problem, first, Scripted(problem, "two", 2), trials)
        both.tell(before)
        assert [p.stage for p in both.ask(1)] == [stage]


def test_second_stage_leaves_out_pending_trials_of_the_first() -> None:
    problem = make_problem(PROFILE)
    both = two_stages(problem, Scripted(problem, "one", 1), Scripted(problem, "two", 2), 1.0)
    asked = both.ask(1)
    assert both.ask(1) == []  # it would be the same allocation
    both.tell([evaluated(problem, asked[0])])
    assert [p.allocation.ranks[0] for p in both.ask(1)] == [2]


def test_a_run_begins_with_learned_rates_and_a_comparison_with_none() -> None:
    assert load_config([]).method.target["rates"] == "smollm2_135m"
    assert method_target("default")["rates"] is None
    assert method_target("default", {"rates": "mine.json"})["rates"] == "mine.json"
    assert "rates" not in method_target("random")
