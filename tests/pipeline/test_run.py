"""Whole runs: the real oracle killed, resumed, repeated and loaded again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qra_bo.finetune.models.load
import qra_bo.pipeline.listeners
import qra_bo.pipeline.pricing
import qra_bo.pipeline.run
from qra_bo.config import load_config
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.pipeline.folders import run_folder
from qra_bo.study.journal import read_journal
from qra_bo.study.signals import RunInterrupted
from qra_bo.utils.errors import ConfigError, DataError, OutputError
from tests.executors import work_in_this_process
from tests.study.problem import comparable

PLANTED = ["+model=tiny", "data=tiny", "oracle=synthetic", "display=none", "effort=quick", "method=evolution",
           "effort.max_full_trials=16", "confirm.seeds=2", "dtype=bfloat16"]
REAL = ["+model=tiny", "data=tiny", "dtype=bfloat16", "display=none", "effort=quick", "effort.max_full_trials=8",
        "method=evolution", "train.batch=2", "train.length=32", "eval.sequences=8", "fidelity.high=8", "fidelity.low=4",
        "data.max_records=64", "confirm.seeds=2", "final.steps=4", "worker.checkpoint_seconds=0", "device=cpu",
        "calibrate.lr_scales=[1.0,2.0]", "granularity=block", "bits=[2,4,8]", "quantizer.formats.2=[hqq2]",
        "quantizer.formats.4=[hqq4]", "quantizer.formats.8=[hqq8]"]


def test_a_compared_prediction_is_reported_before_the_final_training(monkeypatch: pytest.MonkeyPatch,
                                                                     tmp_path: Path) -> None:
    stages: list[list[str]] = []

    def write(folder: Path) -> list[Path]:
        stages.append([e["stage"] for e in read_journal(folder / "trials.jsonl").events if e["event"] == "stage"])
        return []

    work_in_this_process(monkeypatch)
    for module in (qra_bo.pipeline.run, qra_bo.pipeline.listeners):
        monkeypatch.setattr(module, "write_report", write)
    given = [*REAL, "effort=instant", "effort.max_full_trials=0", "budget=uniform:4,4",
             "effort.references=true", f"out={tmp_path}"]
    qra_bo.search(given)
    assert [stage[-1] for stage in stages] == ["comparison", "reference"]
    qra_bo.search(given)
    assert len(stages) == 3  # at its end alone


@pytest.fixture(name="profiles")
def count_profiles(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Oracles that measured a profile, in runs that write no report."""
    measured: list[Any] = []
    profile = SyntheticOracle.profile
    monkeypatch.setattr(SyntheticOracle, "profile",
                        lambda self, progress: (measured.append(self), profile(self, progress))[1])
    monkeypatch.setattr(qra_bo.pipeline.run, "write_report", lambda folder: [])
    return measured


def test_run_that_failed_before_its_journal_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*PLANTED, "budget=uniform:4,4", f"out={tmp_path / 'run'}"]
    opened = os.open

    def failing(path: Any, flags: int, mode: int = 0o777) -> int:
        if Path(path).name == "trials.jsonl":
            raise OSError(5, "Input/output error")
        return opened(path, flags, mode)

    monkeypatch.setattr("os.open", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        qra_bo.search(command)
    monkeypatch.undo()
    assert qra_bo.search(command).exit_status == 0


@pytest.mark.parametrize(("method", "option"), [("structured", "draws=0"), ("random", "radius=1"),
                                                ("evolution", "population=0")])
def test_a_wrong_option_of_the_method_is_told_before_anything_is_measured(
        tmp_path: Path, profiles: list[Any], method: str, option: str) -> None:
    with pytest.raises(ConfigError, match=option.split("=", maxsplit=1)[0]):
        qra_bo.search([*PLANTED, f"method={method}", f"method.{option}", "budget=uniform:4,4", f"out={tmp_path / 'r'}"])
    assert profiles == []


def test_runs_that_begin_in_one_second_have_folders_of_their_own() -> None:
    config = load_config([*PLANTED, "budget=8MB"])
    assert len({run_folder(config) for _ in range(3)}) == 3


def test_auto_keeps_what_it_came_to_when_the_run_began(tmp_path: Path, profiles: list[Any],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qra_bo.pipeline.pricing, "free_bytes", lambda device: 520_000_000)
    wanted = [*PLANTED, "budget=auto", "device=cpu", f"out={tmp_path}"]
    first = qra_bo.search(wanted)
    monkeypatch.setattr(qra_bo.pipeline.pricing, "free_bytes", lambda device: 600_000_000)
    assert qra_bo.search(wanted).best == first.best
    assert first.best["memory"]["budget_bytes"] == 8_000_000


def test_a_stop_while_the_report_is_written_names_the_folder(tmp_path: Path, profiles: list[Any],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(folder: Path) -> list[Path]:
        raise RunInterrupted(signal.SIGINT)

    monkeypatch.setattr(qra_bo.pipeline.run, "write_report", stopped)
    with pytest.raises(RunInterrupted, match=f"again with out={re.escape(str(tmp_path))} to go on"):
        qra_bo.search([*PLANTED, "budget=8MB", f"out={tmp_path}"])


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "QRA_BO_CACHE": str(out.parent / f"cache-{out.name}")}
    return subprocess.Popen([sys.executable, "-m", "qra_bo", *REAL, "budget=uniform:4,4", f"out={out}", *more],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def finish(out: Path) -> Mapping[str, Any]:
    process = start(out)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err.decode()
    best: Mapping[str, Any] = json.loads((out / "best.json").read_text())
    return best


def keys(out: Path) -> list[str]:
    return [e["key"] for e in read_journal(out / "trials.jsonl").events if e["event"] == "trial"]


@pytest.fixture(scope="module", name="undisturbed")
def make_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Any]]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return out, finish(out)


@pytest.mark.slow
def test_killed_at_random_moments_the_real_run_ends_the_same(undisturbed: tuple[Path, Mapping[str, Any]],
                                                             tmp_path: Path) -> None:
    out, rng, inside = tmp_path / "run", np.random.default_rng(0), 0
    total = (undisturbed[0] / "trials.jsonl").read_bytes().count(b"\n")
    for k in range(5):
        process = start(out)
        wait_until(process, lambda target=(k + 1) * total // 7: lines(out) >= target)
        if k % 2:  # and now in the middle of an evaluation: it has just left a checkpoint
            before = files(out)
            wait_until(process, lambda before=before: bool(files(out) - before))
            n = lines(out)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            inside += lines(out) == n
            continue
        time.sleep(float(rng.uniform(0, .5)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert inside
    assert comparable(finish(out)) == comparable(undisturbed[1])
    assert keys(out) == keys(undisturbed[0])
    assert len(keys(out)) == len(set(keys(out)))


def lines(out: Path) -> int:
    path = out / "trials.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def files(out: Path) -> set[tuple[str, int]]:
    """Checkpoints as they are now; one that is written again counts as another."""
    return {(p.name, p.stat().st_mtime_ns) for p in (out / "checkpoints").glob("*.safetensors")}


def wait_until(process: subprocess.Popen[bytes], done: Any) -> None:
    deadline = time.monotonic() + 300
    while not done() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(.005)


@pytest.mark.parametrize("method", ["structured", "autoqra"])
@pytest.mark.usefixtures("profiles")
def test_a_limit_on_average_bits_holds_for_anchors_and_proposals(tmp_path: Path, method: str) -> None:
    result = qra_bo.search([*PLANTED, f"method={method}", "budget=uniform:8,8", "max_average_bits=5",
                                "effort.max_full_trials=30", f"out={tmp_path / 'r'}"])
    events = [e for e in read_journal(tmp_path / "r" / "trials.jsonl").events if e["event"] == "trial"]
    bits = [sum(e["bits"]) / len(e["bits"]) for e in events]  # the layers are equally large
    assert max(bits) == pytest.approx(5.0)
    assert any(max(e["bits"]) == 8 for e in events)
    assert result.best["memory"]["max_average_bits"] == 5.0
    with pytest.raises(ConfigError, match=r"max_average_bits must be at least the lowest of bits=\[2, 3, 4, 8\]"):
        qra_bo.search([*PLANTED, "max_average_bits=1.9"])


TALKS = ["+model=tiny", "data=jsonl", "train.length=64", "device=cpu", "display=plain"]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a worker would be made, which loads the weights."""
    def made(*_: Any, **__: Any) -> None:
        raise AssertionError("a worker was made")

    monkeypatch.setattr(qra_bo.pipeline.run, "make_executor", made)


def talks(folder: Path, answer: str) -> str:
    path = folder / "talks.jsonl"
    path.write_text("\n".join(json.dumps({"conversations": [
        {"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": answer}]}) for i in range(30)))
    return f"data.path={path}"


@pytest.mark.usefixtures("no_weights")
def test_data_is_checked_before_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [*TALKS, f"out={tmp_path / 'run'}"]
    with pytest.raises(DataError, match=r"data\.max_cut accepts 20% .* or accept it with data\.max_cut=0\.5"):
        qra_bo.search([*chat, talks(tmp_path, "long " * 20)])
    with pytest.raises(AssertionError, match="a worker was made"):
        qra_bo.search([*chat, talks(tmp_path, "long " * 20), "data.max_cut=0.6"])
    (tmp_path / "talks.jsonl").write_text('{"conversations": []}')
    monkeypatch.setattr(qra_bo.finetune.models.load, "load_tokenizer", None)  # a malformed file does not need it
    with pytest.raises(DataError, match=r"talks\.jsonl, line 1"):
        qra_bo.search([*chat, f"data.path={tmp_path / 'talks.jsonl'}"])
