"""The grid that validates predictions on a GPU: its runs are real ones, so that a CPU can hold them to account too."""

import json
import subprocess
import sys

import pytest
import torch

from bench.memory.gpu import LEAST_RUNS, OVER, UNDER, run
from bench.report import RESULTS
from qra_bo.memory.activations import rounding_bytes
from qra_bo.memory.model import TrainShape
from qra_bo.space.decoder import spec_from_numbers

SMALL = spec_from_numbers("small", "llama", n_layers=2, hidden_size=128, intermediate_size=320, n_heads=4,
                          n_kv_heads=4, head_dim=32, vocab_size=512, tied=False)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU: the grid is not measured")
def test_predictions_hold_on_this_card() -> None:
    # A process of its own: the allocator's segments are set up once. The table stays in bench/results.
    subprocess.run([sys.executable, "-m", "bench.memory.gpu"], check=True, cwd=RESULTS.parents[1])
    found = json.loads((RESULTS / "memory_gpu.json").read_text())
    assert len(found["rows"]) >= LEAST_RUNS
    for row in found["rows"]:
        assert UNDER <= row["error"] <= OVER, row
