"""The grid that validates predictions on a GPU: its runs are real ones, so that a CPU can hold them to account too."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.memory.gpu import LEAST_RUNS, OVER, SHAPES, UNDER, fitting, llama, main, run, total, tuples
from bench.report import RESULTS
from qra_bo.memory.activations import rounding_bytes
from qra_bo.memory.model import MemoryModel, TrainShape
from qra_bo.space.decoder import spec_from_numbers

SMALL = spec_from_numbers("small", "llama", n_layers=2, hidden_size=128, intermediate_size=320, n_heads=4,
                          n_kv_heads=4, head_dim=32, vocab_size=512, tied=False)


def test_the_grid_is_large_and_mixed() -> None:
    found = tuples(llama(32), SHAPES)
    assert len(found) >= LEAST_RUNS
    assert all(len(set(a.formats)) > 1 and len(set(a.ranks)) > 1 for _, a, _ in found)
    assert {shape.optimizer for shape in SHAPES} == {"adamw", "adamw_8bit"}


def test_a_smaller_card_gets_fewer_layers() -> None:
    shapes = [replace(shape, device="cuda") for shape in SHAPES]
    assert fitting(shapes, 80 * 10**9).n_layers == 32
    spec = fitting(shapes, 8 * 10**9)
    assert 1 <= spec.n_layers < 32
    needs = [total(MemoryModel(spec, shape), space, a) for space, a, shape in tuples(spec, shapes)]
    assert max(needs) <= 8 * 10**9


def test_a_run_of_the_grid_measures_what_was_predicted() -> None:
    shapes = [TrainShape(2, 48, compute, optimizer=kind, logits_chunk=32)
              for compute, kind in ((False, "adamw"), (True, "adamw_8bit"))]
    rows = run(SMALL, shapes, torch.device("cpu"))
    assert len(rows) == 4
    for row, shape in zip(rows, [s for s in shapes for _ in range(2)], strict=True):
        exact = row["predicted_bytes"] - rounding_bytes(SMALL, shape)
        assert UNDER <= exact / row["reserved_bytes"] - 1 <= OVER
        assert set(row["phases"]) == {"load", "forward", "backward", "step"}
        assert row["transient_bytes"] < row["alive_bytes"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the grid is measured")
def test_without_a_gpu_it_says_that_nothing_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (target,) = json.loads(main(["--out", str(tmp_path)]).read_text())["targets"]
    assert (target["value"], target["met"], target["why"]) == (None, False, "no GPU at hand")
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU: the grid is not measured")
def test_predictions_hold_on_this_card() -> None:
    # A process of its own: the allocator's segments are set up once. The table stays in bench/results.
    subprocess.run([sys.executable, "-m", "bench.memory.gpu"], check=True, cwd=RESULTS.parents[1])
    found = json.loads((RESULTS / "memory_gpu.json").read_text())
    assert len(found["rows"]) >= LEAST_RUNS
    for row in found["rows"]:
        assert UNDER <= row["error"] <= OVER, row
