"""The benchmark of exports: each consumer's logits against the run's own, and what was not measured says why."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import exports
from bench.exports import CONSUMERS, rows_of, targets_of
from qra_bo.export.comparison import Reference
from qra_bo.export.run import FinishedRun
from tests.export.finished import finish

PLAIN = CONSUMERS[0]


def measured(run: FinishedRun, folder: Path) -> list[dict[str, Any]]:
    ids = np.arange(40) % 200
    np.save(folder / "tokens.npy", ids)
    return list(rows_of(run, "a run", PLAIN, folder / "tokens.npy", Reference(run, torch.from_numpy(ids))))


def test_transformers_computes_the_runs_own_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "environment", lambda consumer: Path(sys.executable))
    run = FinishedRun.read(finish(tmp_path / "run", ("sym4-g64", "sym2-g64", "fp16", "sym8-g64"), (1, 4, 2, 3),
                                  "quantizer.rounding=rtn"))
    rows = measured(run, tmp_path)
    assert [(row["variant"], row["largest"], row["kl"]) for row in rows] == [("base", 0, 0), ("logits", 0, 0)]
    assert all(row["file_bytes"] == (run.folder / "compressed_tensors" / "model.safetensors").stat().st_size
               for row in rows)
    assert all("compressed-tensors" in row["version"] for row in rows)
    met = {target.what: target.met for target in targets_of(rows)}
    assert met["transformers, logits: largest difference of logits"]
    assert not met["mlx, logits: largest difference of logits"]
    changed = [{**row, "largest": 0.5} for row in rows]
    assert not any(target.met for target in targets_of(changed))
