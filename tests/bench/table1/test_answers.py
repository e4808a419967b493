"""Trials with another initialisation, and task scores of the trained model."""

from collections.abc import Sequence
from typing import Any

import pytest

from bench.table1 import answers
from bench.table1.adalora_run import evaluate_adalora
from qra_bo.finetune.adapters.lora import lora_layers
from qra_bo.finetune.evaluation import TaskScore
from qra_bo.finetune.training.loop import held_out
from qra_bo.space import Allocation
from qra_bo.trials import TrialSpec
from tests.finetune.test_finetune import make, quiet


@pytest.mark.parametrize("initial_rank", [None, 3])
def test_tasks_are_scored_with_the_adapters_attached(monkeypatch: pytest.MonkeyPatch, initial_rank: int | None) -> None:
    oracle = make()
    seen: list[float] = []

    def score(model: Any, tokenizer: Any, tasks: Sequence[str], *, batch: int, limit: int | None) -> list[TaskScore]:
        assert lora_layers(model)
        blocks = oracle.data.validation
        seen.append(held_out(model, blocks, oracle.settings.train, oracle.device).loss)
        return [TaskScore(task, "acc", 0.5, None, limit or 7) for task in tasks]

    monkeypatch.setattr(answers, "score_tasks", score)
    n = len(oracle.units)
    found = answers.answer_tasks(oracle, {"formats": ["nf4"] * n, "ranks": [2] * n}, "kaiming", initial_rank, 4, 5,
                                 5e-3, ["arc"], 2, 3, quiet)
    assert found == {"state": "ok", "message": "", "scores": [
        {"task": "arc", "metric": "acc", "value": 0.5, "stderr": None, "questions": 3}]}
    if initial_rank is None:
        expected = oracle.evaluate(TrialSpec(Allocation(("nf4",) * n, (2,) * n), 4, 4, 5, 5e-3), quiet).loss
    else:
        expected = evaluate_adalora(oracle, ["nf4"] * n, initial_rank, 2, 4, 5, "validation", 5e-3, False,
                                    quiet)["loss"]
    assert seen == [expected]
    assert not lora_layers(oracle.model)  # taken off again
