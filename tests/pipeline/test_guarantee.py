"""The budget is kept: the winner's peak is measured, and over the budget the next best that fits is delivered."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qra_bo.config import load_config
from qra_bo.execution.base import InProcessExecutor
from qra_bo.finetune import oracle as finetune
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.pipeline.finetune_oracle import make_finetune
from qra_bo.pipeline.prepare import make_setting
from qra_bo.space import Allocation, uniform
from qra_bo.study.engine import fine_tune, first_that_fits
from qra_bo.study.lines import NAMES, encode
from qra_bo.utils.errors import TrainingError

SETTINGS = ["+model=tiny", "data=tiny", "data.max_records=64", "train.batch=2", "train.length=32", "eval.sequences=4",
            "final.steps=2", "fidelity.high=2", "fidelity.low=1", "device=cpu", "dtype=float32"]
CONFIG = load_config(SETTINGS)
WINNER, NEXT = uniform(4, "int8", 4), uniform(4, "nf4", 2)


@pytest.fixture(scope="module", name="executor")
def make_executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessExecutor]:
    """The real oracle on the tiny model."""
    executor = InProcessExecutor(make_finetune(CONFIG, tmp_path_factory.mktemp("oracle")))
    yield executor
    executor.close()


def measure(executor: InProcessExecutor, allocation: Allocation, progress: Progress = quiet) -> int:
    found = executor.call("measure_peak", {"allocation": allocation.to_json(), "train_seed": 0}, progress)
    return int(found["measured_bytes"])


def deliver(folder: Path, executor: InProcessExecutor, budget: int) -> tuple[Allocation, list[Mapping[str, Any]]]:
    """What is delivered within ``budget``, and the events that were written."""
    events: list[Mapping[str, Any]] = []
    run: Any = SimpleNamespace(
        setting=make_setting(CONFIG), config=CONFIG, budget_bytes=budget, executor=executor, progress=quiet,
        study=SimpleNamespace(learning_rate=2e-3),
        warn=lambda message: events.append({"event": "warning", "message": message}),
        record=lambda record: events.append({"event": NAMES[type(record)], **encode(record)}))
    delivered = first_that_fits(run, (WINNER, NEXT))
    assert fine_tune(run, delivered, WINNER, folder).steps == 2
    return delivered, events


def test_a_winner_that_measures_within_the_budget_is_delivered(tmp_path: Path, executor: InProcessExecutor) -> None:
    budget = measure(executor, WINNER)
    delivered, events = deliver(tmp_path, executor, budget)
    assert delivered == WINNER
    assert [(e["event"], e["fits"], e["measured_bytes"]) for e in events] == [("measured", True, budget)]
    assert set(events[0]["peaks"]) == {"load", "forward", "backward", "step", "evaluation"}
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_one_byte_over_the_budget_hands_over_to_the_next_best(tmp_path: Path, executor: InProcessExecutor) -> None:
    budget = measure(executor, WINNER) - 1
    delivered, events = deliver(tmp_path, executor, budget)
    assert delivered == NEXT
    assert [e["event"] for e in events] == ["measured", "warning", "measured"]
    assert [e["fits"] for e in events if e["event"] == "measured"] == [False, True]
    assert events[2]["measured_bytes"] <= budget < events[0]["measured_bytes"]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert set(config["rank_pattern"].values()) == {2}


def test_a_winner_that_the_device_can_not_hold_hands_over_to_the_next_best(
        tmp_path: Path, executor: InProcessExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    real = finetune.train_step

    def starved(model: Any, *args: Any) -> int:
        if {m.fmt.name for m in model.modules() if hasattr(m, "fmt")} == {"int8"}:
            raise RuntimeError("CUDA error: out of memory")
        return real(model, *args)

    monkeypatch.setattr(finetune, "train_step", starved)
    delivered, events = deliver(tmp_path, executor, 10**12)
    assert delivered == NEXT
    assert [e["event"] for e in events] == ["measured", "warning", "measured"]
    assert events[0]["measured_bytes"] is None
    assert "did not fit on the device (CUDA error: out of memory)" in events[1]["message"]


def test_a_final_fine_tune_that_diverges_is_the_users_to_mend(
        tmp_path: Path, executor: InProcessExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(*_: Any) -> int:
        raise finetune.DivergedError("loss inf at step 1")

    budget = measure(executor, WINNER)
    real = finetune.FinetuneOracle._evaluate
    monkeypatch.setattr(finetune.FinetuneOracle, "_evaluate", diverges)
    with pytest.raises(TrainingError, match=r"final fine-tune of 2 steps did not end well \(diverged\): loss inf"):
        deliver(tmp_path, executor, budget)
    monkeypatch.setattr(finetune.FinetuneOracle, "_evaluate", real)
    assert not (tmp_path / "adapter").exists()
