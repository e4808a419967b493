"""What runs share is charged to each as if it had been alone."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qra_bo.execution import InProcessExecutor, Limits, LocalExecutor, OracleSpec
from qra_bo.oracle.protocol import Progress
from qra_bo.space import Allocation, uniform
from qra_bo.study.results import load_study
from qra_bo.study.search_loop import SearcherError
from qra_bo.study.shared import Ledger, SharedExecutor
from qra_bo.trials import Fidelity, Proposal, TrialResult, TrialSpec, TrialState
from tests.study import problem
from tests.study.oracles import PlantedOracle
from tests.study.problem import comparable, make_setting, predict_bytes

MAY_DIFFER = frozenset({"effort", "budget"})
A = uniform(4, "nf4", 4)


class Continuing(PlantedOracle):
    """A planted oracle that, like the real one, trains on from where an allocation's training stopped, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []
        self.profiles = 0
        self._done: dict[Any, int] = {}

    def profile(self, progress: Progress) -> Any:
        self.profiles += 1
        return super().profile(progress)

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        self.keys.append(request.key)
        m = super().evaluate(request, progress)
        training = (request.allocation, request.schedule_steps, request.train_seed, request.learning_rate)
        first = self._done.get(training, 0)
        first = first if first < request.steps else 0
        self._done[training] = request.steps
        looks = 1 + int(request.steps == 8 and first < 4)  # the curve is recorded at 4 steps
        return replace(m, new_steps=request.steps - first, training_tokens=10 * (request.steps - first),
                       forward_tokens=30 * looks)


def run(folder: Path, oracle: Continuing, budget: int, siblings: tuple[Path, ...], **changes: Any) -> Mapping[str, Any]:
    settings = make_setting(**changes).config.to_dict()
    executor = SharedExecutor(InProcessExecutor(oracle), folder, siblings, settings, MAY_DIFFER)
    return problem.run(folder, executor, budget=budget, fine_tunes=False, **changes).best


class Broken(problem.Walk):
    """Breaks its contract at the third proposal, while another trial is under way."""

    asked = 0

    def ask(self, n: int) -> list[Proposal]:
        self.asked += 1
        return super().ask(n) if self.asked < 3 else [Proposal(uniform(4, "fp16", 8), Fidelity.HIGH, "evolution")]


BUDGETS = (predict_bytes(A) + 7, predict_bytes(A) + 60, predict_bytes(A))


def test_nothing_is_evaluated_twice_and_every_run_is_charged_as_if_alone(tmp_path: Path) -> None:
    shared = Continuing()
    folders = [tmp_path / str(budget) for budget in BUDGETS]
    together = [run(folder, shared, budget, tuple(f for f in folders if f != folder))
                for folder, budget in zip(folders, BUDGETS, strict=True)]
    assert len(shared.keys) == len(set(shared.keys))
    assert shared.profiles == 1
    alone = [Continuing() for _ in BUDGETS]
    apart = [run(tmp_path / f"alone{budget}", oracle, budget, ())
             for oracle, budget in zip(alone, BUDGETS, strict=True)]
    assert [comparable(best) for best in together] == [comparable(best) for best in apart]
    assert sum(len(oracle.keys) for oracle in alone) > len(shared.keys)


def test_runs_of_another_configuration_share_nothing(tmp_path: Path) -> None:
    first, second = Continuing(), Continuing()
    run(tmp_path / "a", first, BUDGETS[0], ())
    run(tmp_path / "b", second, BUDGETS[0], (tmp_path / "a",), adapter__lr=2e-3)
    assert second.profiles == 1
    assert len(second.keys) == len(first.keys)


def test_runs_on_other_data_share_nothing(tmp_path: Path) -> None:
    first, second = Continuing(), Continuing()
    second.data = "d1"
    run(tmp_path / "a", first, BUDGETS[0], ())
    run(tmp_path / "b", second, BUDGETS[0], (tmp_path / "a",))
    assert len(second.keys) == len(first.keys)


def test_an_unreadable_sibling_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "trials.jsonl").write_text("nonsense\n")
    oracle = Continuing()
    run(tmp_path / "b", oracle, BUDGETS[0], (tmp_path / "a",))
    assert oracle.profiles == 1
    assert "nothing is shared" in caplog.text


class Once(Continuing):
    """Fails the first time in the way it is told to."""

    def __init__(self, state: TrialState) -> None:
        super().__init__()
        self.state: TrialState | None = state

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        m = super().evaluate(request, progress)
        if len(self.keys) == 8:
            return replace(m, state=self.state or TrialState.OK, loss=None, loss_se=None)
        return m


@pytest.mark.parametrize(("state", "again"), [(TrialState.OOM, 1), (TrialState.FAILED, 1), (TrialState.DIVERGED, 0)])
def test_bad_luck_is_not_shared_and_divergence_is(tmp_path: Path, state: TrialState, again: int) -> None:
    oracle = Once(state)
    run(tmp_path / "a", oracle, BUDGETS[0], ())
    n, failed = len(oracle.keys), oracle.keys[7]
    run(tmp_path / "b", oracle, BUDGETS[0], (tmp_path / "a",))
    assert oracle.keys[n:].count(failed) == again


def request(allocation: Allocation, steps: int) -> TrialSpec:
    return TrialSpec(allocation, steps, 8, 11, 1e-3)


@pytest.mark.parametrize("theirs", [(4,), (8,), (4, 8)])
@pytest.mark.parametrize("ours", [(4,), (8,), (4, 8)])
def test_any_order_of_prefixes_costs_the_same(tmp_path: Path, theirs: tuple[int, ...], ours: tuple[int, ...]) -> None:
    oracle, ledger = Continuing(), Ledger()
    for steps in theirs:
        ledger.add(request(A, steps), oracle.evaluate(request(A, steps), lambda *_: None))
    executor = SharedExecutor(InProcessExecutor(oracle), tmp_path, (), {}, MAY_DIFFER)
    executor._journals = (Ledger(), [], [ledger])
    reference = Continuing()
    for steps in ours:
        got = executor.evaluate(request(A, steps), lambda *_: None)
        want = reference.evaluate(request(A, steps), lambda *_: None)
        assert (got.new_steps, got.training_tokens, got.forward_tokens) == \
            (want.new_steps, want.training_tokens, want.forward_tokens)
        assert got.loss == want.loss


def test_a_run_that_failed_leaves_none_of_its_trials_to_the_next(tmp_path: Path) -> None:
    settings, folders = make_setting().config.to_dict(), [tmp_path / "first", tmp_path / "second"]
    spec = OracleSpec("tests.study.oracles:make", {"pause": .05})
    with closing(LocalExecutor([spec, spec], Limits(30))) as inner:
        shared = [SharedExecutor(inner, folder, siblings, settings, MAY_DIFFER)
                  for folder, siblings in zip(folders, ([], folders[:1]), strict=True)]
        with pytest.raises(SearcherError):
            problem.run(folders[0], shared[0], Broken, fine_tunes=False)
        second = problem.run(folders[1], shared[1], budget=BUDGETS[1], fine_tunes=False).study
    keys = [e.spec.key for e in second.trials]
    assert len(keys) == len(set(keys))
    assert len([key for key in keys if key in load_study(folders[0]).by_key]) > 3
