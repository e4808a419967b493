"""Every registered method runs in the engine on a planted landscape, resumes by replay, and explains bad options."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qra_bo.execution.base import InProcessExecutor
from qra_bo.execution.messages import failure
from qra_bo.oracle.synthetic.oracle import SyntheticOracle
from qra_bo.searchers.base import Searcher, SearchProblem
from qra_bo.searchers.methods import METHODS, TwoStages, make_searcher
from qra_bo.space import uniform
from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.runner import ENGINE_STAGES
from qra_bo.trials import Fidelity, Proposal, Trial
from qra_bo.utils.errors import ConfigError
from tests.study.problem import (
    EQUIVALENT,
    HIGH,
    TOKENS,
    Walk,
    comparable,
    make_config,
    make_parts,
    make_problem,
    make_space,
)
from tests.study.test_pieces import PROFILE

OPTIONS: dict[str, dict[str, Any]] = {
    "evolution": {"population": 4, "generations": 3, "promote": 2},
    "autoqra": {"evolution": {"population": 4, "generations": 2, "promote": 2}, "evolution_share": .3},
    "qr_adaptor": {"evolution": {"population": 3, "generations": 2}, "evolution_share": .4}}
GAIN = replace(PROFILE, rank_sensitivity=PROFILE.quantization_sensitivity.repeat(3, axis=1)[:, :8].cumsum(axis=1) + .1)


def run(folder: Path, method: str, equivalents: float = 14) -> RunOutcome:
    oracle = SyntheticOracle(make_space(), 3, high_steps=HIGH, tokens_per_step=TOKENS, eval_tokens=15, record_at=(4,),
                             checkpoints=folder.parent / "checkpoints")

    def build(problem: SearchProblem, planned: float) -> Searcher:
        return make_searcher(method, problem, OPTIONS.get(method, {}), planned)

    config = make_config(folder, method=method, max_full_trials=equivalents, ranking_top=0, lr_scales=(1.0,))
    return Engine(config, make_parts(InProcessExecutor(oracle), make_searcher=build)).run()


@pytest.mark.parametrize("method", [m for m in METHODS if m != "default"])
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


def test_autoqra_spends_its_share_on_evolution_and_then_trusts_its_region(tmp_path: Path) -> None:
    stages = [e.stage for e in run(tmp_path, "autoqra", 24).study.trials if e.stage not in ENGINE_STAGES]
    assert set(stages) == {"evolution", "trust_region"}
    assert stages == sorted(stages)


class Scripted(Walk):
    """Gives out fixed proposals and notes what it hears."""

    def __init__(self, problem: SearchProblem, stage: str, n: int) -> None:
        super().__init__(problem)
        self._queue = [Proposal(uniform(4, "ref2", r), Fidelity.HIGH, stage) for r in (1, 2, 4, 8)[:n]]

    def ask(self, n: int) -> list[Proposal]:
        taken, self._queue = self._queue[:n], self._queue[n:]
        return taken

    def tell(self, evaluations: Sequence[Trial]) -> None:
        self.told += evaluations


def evaluated(problem: SearchProblem, proposal: Proposal) -> Trial:
    from qra_bo.trials import TrialSpec, TrialState

    request = TrialSpec(proposal.allocation, problem.high_steps, problem.high_steps, 0)
    m = failure(TrialState.FAILED, "", problem.high_steps, 0.0)
    return Trial(1, proposal.allocation, (2,) * 4, proposal.stage, proposal.fidelity, request, 0, m, 0)


def test_two_stages_wait_for_the_first_and_both_hear_everything() -> None:
    problem = make_problem(PROFILE)
    first, second = Scripted(problem, "one", 4), Scripted(problem, "two", 2)
    both = TwoStages("both", first, second, problem, 4.0)
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
    both = TwoStages("both", Scripted(problem, "one", 4), Scripted(problem, "two", 2), problem, 1.0)
    failed = evaluated(problem, both.ask(1)[0])
    both.tell([replace(failed, result=replace(failed.result, new_steps=0, training_tokens=charged))])
    assert [p.stage for p in both.ask(1)] == [stage]


def test_the_second_stage_does_not_ask_for_what_the_first_awaits() -> None:
    problem = make_problem(PROFILE)
    both = TwoStages("both", Scripted(problem, "one", 1), Scripted(problem, "two", 2), problem, 1.0)
    asked = both.ask(1)
    assert both.ask(1) == []  # it would be the same allocation
    both.tell([evaluated(problem, asked[0])])
    assert [p.allocation.ranks[0] for p in both.ask(1)] == [2]


def test_unknown_names_and_options_are_explained() -> None:
    problem = make_problem(GAIN)
    with pytest.raises(ConfigError, match="unknown method 'autoqr'; known: autoqra, "):
        make_searcher("autoqr", problem, {}, 10)
    with pytest.raises(ConfigError, match=r"method.params.populaton: .*no such parameter; known: population, "):
        make_searcher("evolution", problem, {"populaton": 4}, 10)
    with pytest.raises(ConfigError, match=r"structured.*n_prior"):
        make_searcher("structured", problem, {"n_priors": 4}, 10)
    with pytest.raises(ConfigError, match=r"'random' has no such parameter; known: none"):
        make_searcher("random", problem, {"seed": 4}, 10)
    with pytest.raises(ConfigError, match="evolution_share must lie in"):
        make_searcher("autoqra", problem, {"evolution_share": 2}, 10)
    with pytest.raises(ConfigError, match=r"radios: the method 'trust_region'"):
        make_searcher("autoqra", problem, {"trust_region": {"radios": 2}}, 10)


def test_nested_options_reach_the_model() -> None:
    searcher: Any = make_searcher("default", make_problem(GAIN), {"n_prior": 2, "temperatures": [1.0],
                                                                  "model": {"noise": .01}}, 10)
    assert searcher.name == "structured"
    assert searcher._options.model.noise == .01
    assert searcher._options.temperatures == (1.0,)
