"""Real signals to real processes: a run that was killed at any moment goes on to the same end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qra_bo.study.journal import read_journal
from qra_bo.study.signals import Interrupts, RunInterrupted
from qra_bo.study.status import read_state
from qra_bo.study.trial_runner import TrialRunner
from tests.study.problem import Walk, comparable, keys, run

PAUSE = 0.02


def start(folder: Path, pause: float = PAUSE) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.study.problem", str(folder), str(pause)],
                            stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, process_group=0)


def finish(folder: Path) -> dict[str, Any]:
    process = start(folder)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    best: dict[str, Any] = json.loads((folder / "best.json").read_text())
    return best


def wait_for_lines(folder: Path, n: int, process: subprocess.Popen[bytes]) -> None:
    path = folder / "trials.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= n:
            return
        time.sleep(.01)


@pytest.fixture(scope="module", name="undisturbed")
def make_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, finish(folder)


@pytest.mark.parametrize(("seed", "kills"), [(0, 2), pytest.param(1, 25, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_the_same(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, seed: int,
                                                   kills: int) -> None:
    rng = np.random.default_rng(seed)
    lines = 0
    for _ in range(kills):
        process = start(tmp_path)
        wait_for_lines(tmp_path, lines + int(rng.integers(0, max(2, 60 // kills))), process)
        time.sleep(float(rng.uniform(0, 2 * PAUSE)))
        process.kill()
        process.communicate()
        path = tmp_path / "trials.jsonl"
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
    assert comparable(finish(tmp_path)) == comparable(undisturbed[1])
    assert keys(tmp_path) == keys(undisturbed[0])


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_leaves_a_clean_journal_and_no_worker(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path,
                                                       signum: int, status: int) -> None:
    process = start(tmp_path, .3)
    wait_for_lines(tmp_path, 8, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.killpg(process.pid, signum)  # as a terminal does: its workers get the signal too
    _, err = process.communicate(timeout=20)
    assert process.returncode == status, err.decode()
    content = read_journal(tmp_path / "trials.jsonl")
    assert not content.warnings
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"
    assert children
    assert_all_end(children)
    assert comparable(finish(tmp_path)) == comparable(undisturbed[1])


def test_a_dead_driver_takes_its_worker_with_it_and_is_known_to_have_died(tmp_path: Path) -> None:
    process = start(tmp_path, 5.0)
    wait_for_lines(tmp_path, 4, process)
    assert read_state(tmp_path) == "running"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.kill()
    process.communicate()
    assert_all_end(children)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    assert read_state(tmp_path) == "died"


def assert_all_end(pids: list[str]) -> None:
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(.02)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_signal_waits_for_the_shield_and_a_second_acts_as_ever() -> None:
    done = False
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunInterrupted) as caught, Interrupts() as interrupts, interrupts.shield():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(.01)
        assert signal.getsignal(signal.SIGTERM) == before
        done = True
    assert done
    assert caught.value.exit_status == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_hangup_is_ignored_and_a_second_interrupt_is_not() -> None:
    sent, before = [], signal.getsignal(signal.SIGHUP)  # ignored below nohup
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.shield():  # noqa: PT012
        for signum in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
            sent.append(signum)
            os.kill(os.getpid(), signum)
    assert sent[-1] == signal.SIGINT
    assert signal.getsignal(signal.SIGHUP) == before


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_at_once_leaves_the_run_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise RunInterrupted(signal.SIGINT)

    monkeypatch.setattr(TrialRunner, "mark_time", stopped)  # where the second one comes
    monkeypatch.setattr(Walk, "ask", stopped)
    with pytest.raises(RunInterrupted):
        run(tmp_path)
    assert read_state(tmp_path) == "interrupted"
