"""A final fine-tune that two processes share: the same result as of one that accumulates, stops, ends and errors."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qra_bo.execution.base import OracleSpec
from qra_bo.execution.local import LocalExecutor
from qra_bo.execution.pool import Limits
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.utils.errors import WorkerError
from tests.finetune.models import final_options
from tests.finetune.test_final import NODE
from tests.finetune.test_finetune import MIXED, make


def oracle_of_three(folder: str, seconds: float = 1e9) -> FinetuneOracle:
    """Steps of three sequences, which two processes can't halve; a checkpoint after ``seconds``."""
    torch.set_num_threads(1)
    return make(Path(folder), seconds, batch=1, accumulate=3)


def wanted(out: Path, seed: int = 5, **options: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return {"allocation": MIXED.to_json(), "options": final_options(**{"steps": 12, "validate_every": 4, **options}),
            "train_seed": seed, "learning_rate": 5e-3, "out": str(out), "model_cfg": NODE}


def alone(out: Path, progress: Progress = quiet, **options: Any) -> dict[str, Any]:
    arguments = wanted(out, **options)
    return oracle_of_three(str(out)).finalise(**arguments, progress=progress)


@pytest.fixture(name="pairs")
def make_pairs(tmp_path: Path) -> Iterator[Any]:
    made: list[LocalExecutor] = []

    def pair(**kwargs: float) -> LocalExecutor:
        (tmp_path / "two").mkdir(exist_ok=True)
        spec = OracleSpec("tests.finetune.test_processes:oracle_of_three", {"folder": str(tmp_path / "two"), **kwargs})
        made.append(LocalExecutor([spec, spec], Limits(60.0, retries=1)))
        return made[-1]

    yield pair
    for executor in made:
        executor.close()


def assert_same(one: dict[str, Any], two: dict[str, Any], out: Path, other: Path) -> None:
    """The results differ by the order of sums in fp32."""
    assert one.keys() == two.keys()
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    for points in ("curve", "training"):
        assert [x for x, _ in two[points]] == [x for x, _ in one[points]]
        assert [y for _, y in two[points]] == pytest.approx([y for _, y in one[points]], rel=1e-6)
    counts = ("steps", "planned_steps", "kept_step", "training_tokens")
    assert [two[key] for key in counts] == [one[key] for key in counts]
    mine, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (out, other))
    assert mine.keys() == theirs.keys()
    difference, norm = (torch.linalg.vector_norm(torch.cat([part.flatten() for part in parts])) for parts in (
        [mine[name] - theirs[name] for name in mine], mine.values()))
    assert float(difference / norm) < 1e-6


def test_two_processes_train_as_one_and_one_goes_on_where_they_stop(tmp_path: Path, pairs: Any) -> None:
    pair, told = pairs(), list[int]()
    two = pair.call("finalise", wanted(tmp_path / "two"), lambda what, at, total: told.append(at), 2)
    assert_same(alone(tmp_path / "one"), two, tmp_path / "one", tmp_path / "two")
    assert told == sorted(set(told)), "the first process alone shows progress"
    processes = [worker.process for worker in pair._workers]

    def interrupted(what: str, at: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pair.call("finalise", wanted(tmp_path / "two", 6, steps=30), interrupted, 2)
    pair.close()
    assert [process.returncode for process in processes] == [0, 0]
    steps: list[int] = []
    again = alone(tmp_path / "two", lambda what, at, total: steps.append(at), seed=6, steps=30)
    assert 1 < steps[0] < 30
    assert_same(alone(tmp_path / "whole", seed=6, steps=30), again, tmp_path / "whole", tmp_path / "two")


@pytest.mark.slow
def test_one_that_is_killed_ends_both_and_two_others_go_on(tmp_path: Path, pairs: Any) -> None:
    pair, killed = pairs(seconds=0.0), list[int]()

    def kill(what: str, at: int, total: int) -> None:
        if at > 1 and not killed:
            killed.extend(worker.process.pid for worker in pair._workers)
            os.kill(killed[1], signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"'finalise'.*killed by SIGKILL.*run the same command again"):
        pair.call("finalise", wanted(tmp_path / "two", steps=60), kill, 2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in killed)
    steps: list[int] = []
    two = pairs().call("finalise", wanted(tmp_path / "two", steps=60), lambda what, at, total: steps.append(at), 2)
    assert steps[0] > 1
    assert_same(alone(tmp_path / "one", steps=60), two, tmp_path / "one", tmp_path / "two")
