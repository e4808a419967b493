"""What goes wrong in a worker is a result, and the next request is served."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qra_bo.execution.base import Executor, InProcessExecutor, OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.execution.pool import Limits
from qra_bo.oracle.protocol import quiet
from qra_bo.space import uniform
from qra_bo.trials import TrialSpec, TrialState
from qra_bo.utils.errors import ContractError, DeviceError, ModelError, WorkerError
from qra_bo.utils.process import STOPPING
from tests.study.oracles import PlantedOracle

REQUEST = TrialSpec(uniform(4, "nf4", 4), 8, 8, 3, 2e-3)
TARGET = "tests.study.oracles:make"


@pytest.fixture(name="faulty")
def make_faulty(tmp_path: Path) -> Iterator[Any]:
    """Executors with a fault at the given evaluations."""
    made: list[LocalExecutor] = []
    (tmp_path / "faults").mkdir()

    def make(deadline: float | None = 30.0, retries: int = 0, pause: float = 0.0, **faults: str) -> LocalExecutor:
        kwargs = {"pause": pause, "faults": {k.removeprefix("at"): v for k, v in faults.items()},
                  "folder": str(tmp_path / "faults")}
        made.append(LocalExecutor([OracleSpec(TARGET, kwargs)], Limits(deadline, retries=retries)))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def test_worker_answers_as_the_oracle_does_and_passes_progress_on(faulty: Any) -> None:
    direct: Executor = InProcessExecutor(PlantedOracle())
    seen: list[tuple[str, int, int]] = []
    executor = faulty()
    there = executor.evaluate(REQUEST, lambda *p: seen.append(p))
    here = direct.evaluate(REQUEST, quiet)
    assert (there.loss, there.curve, there.training_tokens) == (here.loss, here.curve, here.training_tokens)
    assert seen[-1] == ("train (loss 4.0000)", 8, 8)
    assert executor.describe() == direct.describe()
    profile, expected = executor.profile(quiet), direct.profile(quiet)
    np.testing.assert_array_equal(profile.profile.quantization_sensitivity, expected.profile.quantization_sensitivity)
    assert profile.profile.base_loss == expected.profile.base_loss
    assert (profile.training_tokens, profile.forward_tokens) == (4, 30)


FAULTS = (("kill", TrialState.FAILED, "killed by SIGKILL"), ("exit", TrialState.FAILED, "exit status 3"),
          ("raise", TrialState.FAILED, "RuntimeError: matrix is singular"), ("memory", TrialState.OOM, "no room"),
          ("allocator", TrialState.OOM, "DefaultCPUAllocator"), ("device", TrialState.OOM, "Tried to allocate 2 GiB"),
          ("hang", TrialState.FAILED, "silent for more than 1.5 s"))


def test_a_fault_is_a_result_and_the_next_request_is_served(faulty: Any) -> None:
    executor = faulty(deadline=1.5, **{f"at{i}": fault for i, (fault, *_) in enumerate(FAULTS)}, at8="bug")
    for fault, state, message in FAULTS:
        found = executor.evaluate(REQUEST, quiet)
        assert (found.state, found.loss) == (state, None)
        assert message in found.message
        assert (".py, line " in found.message) == (fault in ("raise", "memory", "allocator", "device")), found.message
    assert executor.evaluate(REQUEST, quiet).state is TrialState.OK
    with pytest.raises(ContractError, match=r"(?s)realised rank differs.*Traceback"):
        executor.evaluate(REQUEST, quiet)
    assert executor.evaluate(REQUEST, quiet).state is TrialState.OK


def test_a_lost_evaluation_is_begun_again_where_that_is_allowed_and_lost_twice_is_a_failure(faulty: Any) -> None:
    executor = faulty(deadline=1.5, retries=1, at0="kill", at2="hang", at4="kill", at5="exit")
    for _ in range(2):
        assert executor.evaluate(REQUEST, quiet).loss == PlantedOracle().evaluate(REQUEST, quiet).loss
    assert "exit status 3" in executor.evaluate(REQUEST, quiet).message
    assert executor.evaluate(REQUEST, quiet).state is TrialState.OK


def test_what_ran_out_of_memory_is_not_begun_again(faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([0, 1])
    monkeypatch.setattr(LocalExecutor, "_memory_kills", lambda self: next(kills))
    lost = faulty(retries=1, at0="kill").evaluate(REQUEST, quiet)
    assert lost.state is TrialState.OOM
    assert "the machine ran out of memory" in lost.message


def test_a_worker_at_work_keeps_its_evaluation_when_it_is_closed(faulty: Any, tmp_path: Path) -> None:
    executor = faulty(at0="crawl")
    seen: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.evaluate(REQUEST, stop)
    process = executor._workers[0].process
    executor.close()
    assert process.returncode == 0
    assert int((tmp_path / "kept").read_text()) >= seen[-1]


def test_what_the_user_must_mend_arrives_as_it_was_raised() -> None:
    with pytest.raises(ModelError, match="no weights of big") as caught:
        LocalExecutor([OracleSpec("tests.study.oracles:no_weights", {"name": "big"})], Limits(30)).describe()
    assert caught.value.exit_status == 2
    with pytest.raises(ContractError, match=r"AttributeError.*'absent'"):
        LocalExecutor([OracleSpec("tests.study.oracles:absent")], Limits(30)).describe()


def test_lack_of_memory_outside_a_trial_is_the_users_to_mend(faulty: Any) -> None:
    with pytest.raises(DeviceError, match=r"Tried to allocate 2 GiB\): end other programs") as caught:
        LocalExecutor([OracleSpec("tests.study.oracles:finds_no_room")], Limits(30)).describe()
    assert caught.value.exit_status == 2
    with pytest.raises(DeviceError, match=r"CUDA driver error: out of memory\).*lower train\.batch"):
        faulty().call("tests.study.oracles:asks_for_room", {}, quiet)


def test_workers_share_a_call_and_the_fault_of_one_ends_it() -> None:
    told: list[int] = []
    with closing(LocalExecutor([OracleSpec(TARGET)] * 3, Limits(600, retries=1))) as executor:
        def call(fault: str) -> Any:
            return executor.call("tests.study.oracles:shared", {"fault": fault}, lambda _, at, __: told.append(at), 2)

        assert call("") == call("") == {"size": 2}
        assert told == [0, 0]
        assert executor._workers[2].process is None
        for fault, error, message in (("raise", ModelError, "no weights in process 1"),
                                      ("exit", WorkerError, r"'shared'.*exit status 3.*run the same command again")):
            with pytest.raises(error, match=message):
                call(fault)
            assert [worker.process for worker in executor._workers] == [None] * 3, "the first waits for ever"


@pytest.mark.parametrize("retries", [0, 1])
def test_a_worker_lost_outside_an_evaluation_is_asked_again(faulty: Any, retries: int) -> None:
    executor = faulty(retries=retries, pause=.5)
    executor.describe()
    killed: list[int] = []

    def kill_once(what: str, done: int, total: int) -> None:
        if not killed:
            killed.append(executor._workers[0].process.pid)
            os.kill(killed[0], signal.SIGKILL)

    if retries:
        assert executor.profile(kill_once).profile.base_loss == PlantedOracle().profile(quiet).base_loss
    else:
        with pytest.raises(WorkerError, match=r"'profile'.*SIGKILL.*run the same command again"):
            executor.profile(kill_once)


def test_worker_ignores_the_terminals_signals_ends_on_close_and_is_replaced(faulty: Any) -> None:
    executor = faulty()
    executor.describe()
    executor._workers[0].process.kill()
    executor._workers[0].process.wait()
    executor.describe()  # by another one
    process = executor._workers[0].process
    for signum in STOPPING:
        os.kill(process.pid, signum)
    assert executor.evaluate(REQUEST, quiet).state is TrialState.OK
    start = time.monotonic()
    executor.close()
    executor.close()
    assert process.returncode == 0
    assert time.monotonic() - start < 4


def test_a_worker_that_is_stopped_and_continued_is_not_hung(faulty: Any, caplog: pytest.LogCaptureFixture) -> None:
    executor = faulty(deadline=1.0, pause=.4)
    executor.describe()
    pid = executor._workers[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(2.5, os.kill, (pid, signal.SIGCONT)).start()
    assert executor.evaluate(REQUEST, quiet).state is TrialState.OK
    assert executor._workers[0].process.pid == pid
    expected = f"the worker process {pid} is stopped, and waited for: continue it with kill -CONT {pid}"
    assert caplog.messages == [expected]


BUILDING = """
import sys, time
from pathlib import Path
from qra_bo.execution.pool import Limits
from qra_bo.execution.local import LocalExecutor
from qra_bo.execution.base import OracleSpec
drawn = Path(sys.argv[1])
executor = LocalExecutor([OracleSpec("tests.study.oracles:draws_a_bar", {"drawn": str(drawn)})], Limits(30))
executor._workers[0].begin({"op": "call"})
while not drawn.exists():
    time.sleep(.01)
executor.close()
"""


def test_a_worker_killed_after_a_bar_leaks_no_semaphore(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BUILDING, str(tmp_path / "drawn")], capture_output=True, text=True,
                          check=True, timeout=120)  # to the end of all that write to stderr
    assert "1/1" in done.stderr
    assert "semaphore" not in done.stderr


def test_in_process_faults_are_results_too(tmp_path: Path) -> None:
    oracle = PlantedOracle(faults={"0": "raise", "1": "memory", "2": "bug"}, folder=str(tmp_path))
    executor = InProcessExecutor(oracle)
    assert executor.evaluate(REQUEST, quiet).state is TrialState.FAILED
    assert executor.evaluate(REQUEST, quiet).state is TrialState.OOM
    with pytest.raises(ContractError):
        executor.evaluate(REQUEST, quiet)
    executor.close()
    assert oracle.closed
