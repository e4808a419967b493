"""Evaluations on Ray: as on this machine's own workers, and whatever dies there is begun again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qra_bo.execution.base import OracleSpec
from qra_bo.execution.on_ray import RayExecutor
from qra_bo.execution.pool import Limits
from qra_bo.oracle.protocol import quiet
from qra_bo.space import uniform
from qra_bo.trials import TrialSpec, TrialState
from qra_bo.utils.errors import ContractError
from tests.study.oracles import PlantedOracle

ray = pytest.importorskip("ray", reason="executor=ray needs the extra 'ray'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::Warning:ray")]
REQUEST = TrialSpec(uniform(4, "nf4", 4), 8, 8, 3, 2e-3)
TARGET = "tests.study.oracles:make"
SMALL = {"num_cpus": 1}


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(name="faulty")
def make_faulty(tmp_path: Path) -> Iterator[Any]:
    made: list[RayExecutor] = []
    (tmp_path / "faults").mkdir()

    def make(workers: int = 1, silence: float = 30.0, retries: int = 0, pause: float = 0.0,
             **faults: str) -> RayExecutor:
        kwargs = {"faults": {k.removeprefix("at"): v for k, v in faults.items()}, "folder": str(tmp_path / "faults"),
                  "pause": pause}
        made.append(RayExecutor(OracleSpec(TARGET, kwargs), Limits(silence, retries=retries), workers, SMALL, None))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def test_it_answers_as_the_oracle_does(faulty: Any) -> None:
    executor, direct = faulty(pause=1.5), PlantedOracle()
    seen: list[tuple[str, int, int]] = []
    there, here = executor.evaluate(REQUEST, lambda *p: seen.append(p)), direct.evaluate(REQUEST, quiet)
    assert (there.loss, there.curve, there.training_tokens) == (here.loss, here.curve, here.training_tokens)
    assert seen
    assert executor.describe() == direct.describe()
    assert executor.profile(quiet).profile.base_loss == direct.profile(quiet).base_loss


@pytest.mark.parametrize("fault", ["kill", "exit", "hang"])
def test_what_dies_or_hangs_is_begun_again(faulty: Any, fault: str) -> None:
    executor = faulty(silence=4.0, retries=1, at0=fault)
    assert executor.evaluate(REQUEST, quiet).loss == PlantedOracle().evaluate(REQUEST, quiet).loss


def test_what_dies_twice_is_a_failure_and_errors_are_told_apart(faulty: Any) -> None:
    executor = faulty(retries=1, at0="kill", at1="kill", at2="memory", at3="bug")
    lost = executor.evaluate(REQUEST, quiet)
    assert lost.state is TrialState.FAILED
    assert "worker lost" in lost.message
    assert executor.evaluate(REQUEST, quiet).state is TrialState.OOM
    with pytest.raises(ContractError, match="realised rank differs"):
        executor.evaluate(REQUEST, quiet)
    assert executor.evaluate(REQUEST, quiet).state is TrialState.OK


def test_a_closed_executor_keeps_what_is_evaluated(faulty: Any, tmp_path: Path) -> None:
    executor = faulty(at0="crawl")
    executor.submit(REQUEST)

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.finished(stop)
    executor.close()
    assert int((tmp_path / "kept").read_text()) >= 1
