"""Which executor a configuration comes to, and what is refused before anything is started."""

from pathlib import Path
from typing import Any

import pytest

from qra_bo.config import load_config
from qra_bo.config.presets import preset_notes
from qra_bo.execution.base import InProcessExecutor
from qra_bo.execution.local import LocalExecutor
from qra_bo.pipeline.executors import make_executor, worker_devices

TINY = ["+model=tiny", "data=tiny", "device=cpu"]


def test_what_costs_nothing_runs_in_this_process_and_all_else_in_workers(tmp_path: Path) -> None:
    planted = [*TINY, "oracle=synthetic"]
    assert isinstance(make_executor(load_config(planted), tmp_path), InProcessExecutor)
    for overrides, n in ((TINY, 1), ([*TINY, "executor.workers=3"], 3), ([*planted, "executor.workers=2"], 2)):
        executor = make_executor(load_config(overrides), tmp_path)
        assert isinstance(executor, LocalExecutor)
        assert executor.workers == n


@pytest.mark.parametrize(("device", "gpus", "expected"), [
    ("auto", 4, ["cuda:0", "cuda:1", "cuda:2"]), ("cuda", 3, ["cuda:0", "cuda:1", "cuda:2"]), ("auto", 0, ["cpu"] * 3),
    ("cpu", 4, ["cpu"] * 3)])
def test_workers_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, expected: list[str]) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = load_config([*TINY[:2], f"device={device}", "executor.workers=3"])
    assert worker_devices(config) == expected


@pytest.mark.parametrize(("given", "gpus", "expected"), [
    ([], 2, ["cuda:0", "cuda:1"]), (["device=cuda:1"], 2, ["cuda:1"]), (["device=cpu"], 2, ["cpu"]), ([], 0, ["auto"]),
    (["executor.workers=1"], 2, ["auto"]), (["task=profile"], 2, ["auto"]),
    (["task=finetune", "allocation=uniform:4,4"], 2, ["cuda:0", "cuda:1"])])
def test_every_card_is_taken_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, given: list[str], gpus: int,
                                                   expected: list[str]) -> None:
    import torch

    monkeypatch.setattr("qra_bo.config.presets.planned_device", lambda device: device.partition(":")[0].replace(
        "auto", "cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = load_config([*TINY[:2], *given])
    assert worker_devices(config) == expected
    assert any("the final fine-tune runs on 2 of these cards" in line for line in preset_notes(config)) == \
        (len(expected) > 1)
    assert load_config(["+model=tiny", "task=memory"]).executor.workers == 1


@pytest.mark.parametrize(("given", "expected"), [
    (["executor.workers=3"], 3), (["executor.workers=3", "train.batch=1", "train.accumulate=2"], 2), ([], 1),
    (["executor=ray", "executor.workers=3"], 1)])
def test_a_final_fine_tune_has_no_more_workers_than_a_step_has_sequences(given: list[str], expected: int) -> None:
    assert load_config([*TINY, *given]).final_workers == expected


def test_a_worker_trains_with_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qra_bo.pipeline.executors.cores", lambda: 8)
    specs: list[Any] = []
    monkeypatch.setattr("qra_bo.pipeline.executors.LocalExecutor", lambda found, limits: specs.extend(found))
    make_executor(load_config([*TINY, "executor.workers=3"]), tmp_path)
    assert [s.kwargs["threads"] for s in specs] == [2, 2, 2]


@pytest.mark.parametrize(("capabilities", "dtype"), [
    ([(7, 5), (8, 6)], "float16"), ([(8, 6), (7, 5)], "float16"), ([(8, 6), (9, 0), (7, 5)], "bfloat16")])
def test_workers_of_different_cards_have_one_compute_type(capabilities: list[tuple[int, int]], dtype: str,
                                                          monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    specs: list[Any] = []
    monkeypatch.setattr("qra_bo.pipeline.executors.LocalExecutor", lambda found, limits: specs.extend(found))
    make_executor(load_config([*TINY[:2], "device=cuda", "executor.workers=2"]), tmp_path)
    assert [s.kwargs["config"]["dtype"] for s in specs] == [dtype, dtype]
