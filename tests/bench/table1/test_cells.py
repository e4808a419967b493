"""Whose a failure is: a row's own, or the whole table's; and what is said of searches and scores."""

from types import SimpleNamespace
from typing import Any

import pytest

from bench.table1 import cells
from bench.table1.limits import parse_limit
from bench.table1.methods import ROWS
from bench.table1.results import accuracy, qra_bo_like
from qra_bo.utils.errors import DeviceError, ModelError, TrainingError, UserError, WorkerError


def raising(monkeypatch: pytest.MonkeyPatch, error: UserError) -> cells.CellResult:
    def found(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(cells, "found", found)
    session: Any = SimpleNamespace()
    return cells.work(session, cells.Cell(ROWS["loftq"], parse_limit("peak 1GB")), lambda text: None)


@pytest.mark.parametrize("error", [ModelError, WorkerError, DeviceError, TrainingError])
def test_what_no_row_can_do_without_stops_the_table(monkeypatch: pytest.MonkeyPatch, error: type[UserError]) -> None:
    with pytest.raises(error, match="lost"):
        raising(monkeypatch, error("lost"))


def test_a_group_counts_once_among_the_tasks_that_were_asked() -> None:
    scores = [{"task": task, "metric": metric, "value": value} for task, metric, value in (
        ("boolq", "acc", 0.8), ("mmlu", "acc", 0.4), ("mmlu_law", "acc", 0.1), ("mmlu_law", "acc_norm", 0.1),
        ("own", "exact_match (strict)", 0.6))]
    assert accuracy(scores, ["boolq", "mmlu", "folder/own.jsonl"]) == pytest.approx(0.6)
    assert accuracy(scores, ["hellaswag"]) is None


def test_ours_meets_a_row_with_codes_chosen_as_the_row_s() -> None:
    rows = (("amq_lora", False), ("qlora_gptq", True), ("best_uniform_finer_gptq", True))
    assert [qra_bo_like(*row) for row in rows] == ["qra_bo", "qra_bo_gptq", "qra_bo_finer_gptq"]
