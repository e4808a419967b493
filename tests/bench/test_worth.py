"""What a loss is worth: accuracy by brute force, the choice of a rate, and resumed trainings on the tiny model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import worth
from bench.length.plan import Choice
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.data.records import NO_LOSS
from qra_bo.space import uniform
from tests.finetune.test_finetune import make

TINY = ["+model=tiny", "model.n_layers=1", "data=tiny", "quantizer.rounding=rtn", "eval.sequences=4"]


def test_accuracy_is_the_share_of_targets_that_are_likeliest() -> None:
    oracle = make()
    oracle.tokenizer = byte_tokenizer()
    blocks = oracle.data.test.take(oracle.settings.eval_blocks)
    with torch.no_grad():
        likeliest = oracle.model(input_ids=torch.from_numpy(blocks.input_ids)).logits.argmax(-1).numpy()
    labels = np.full_like(blocks.labels, NO_LOSS)
    labels[:, 3:9] = likeliest[:, 2:8]  # six targets that it hits, and three that it misses
    labels[:, 3:6] = (labels[:, 3:6] + 1) % 7
    oracle.data = replace(oracle.data, test=replace(blocks, labels=labels))
    found = worth.measured(oracle)
    assert (found["tokens"], found["accuracy"]) == (6 * len(labels), 0.5)


def test_the_rate_of_least_validation_loss_counts(tmp_path: Path) -> None:
    def event(name: str, factor: float, validation: float, loss: float) -> worth.Row:
        return {"task": "plays", "name": name, "steps": 24, "factor": factor, "validation": validation, "loss": loss}

    untuned = {**event(worth.UNTUNED, 0.0, 4.0, 4.5), "steps": 0}
    rows = worth.best_rows([event("mixed", 0.5, 3.0, 3.2), event("mixed", 1.0, 2.9, 3.3), untuned,
                            event("QLoRA", 1.0, 3.1, 3.1), {**event("QLoRA", 2.0, 2.0, 2.0), "loss": None}])
    assert [(r["name"], r["factor"], r["rates"]) for r in rows] == [("untuned", 0.0, 1), ("QLoRA", 1.0, 2),
                                                                    ("mixed", 1.0, 2)]
    assert rows[2]["perplexity"] == pytest.approx(27.1, abs=0.02)


@pytest.mark.slow
def test_trainings_that_are_there_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    config = worth.study_config
    monkeypatch.setattr(worth, "study_config", lambda text, gsm8k: config(text, gsm8k, TINY))
    monkeypatch.setattr(worth, "choices", lambda: {"QLoRA": Choice("QLoRA", uniform(1, "nf4", 2), "reference", "")})
    out = tmp_path / "worth.jsonl"
    for rates in ((1.0,), (0.5, 1.0)):
        worth.train("plays", None, 2, rates, out)
    assert [(e["name"], e["factor"]) for e in worth.finished(out)] == [("untuned", 0.0), ("QLoRA", 1.0), ("QLoRA", 0.5)]
    assert worth.main(["--out", str(out), "--summary", "--results", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "worth.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["untuned", "QLoRA"]
    assert all(0 <= row["accuracy"] <= 1 and row["loss"] > 0 for row in rows)
