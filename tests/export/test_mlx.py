"""Runs as mlx-lm loads them: the run's own weights at every width and group, and its logits."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from qra_bo.export.mlx import FOLDER, linear_tensors
from qra_bo.export.run import FinishedRun
from qra_bo.export.weights import LinearWeights, weights_of
from qra_bo.finetune.quantization.base import pack_for
from qra_bo.memory.formats import FORMATS, parse_format
from qra_bo.memory.serving import CONSUMERS, MLX_BITS
from tests.export.allocations import Case, build
from tests.export.finished import exported


@settings(deadline=None)
@given(st.sampled_from([n for n, f in FORMATS.items() if f.backend in ("integer", "hqq") and f.bits in MLX_BITS]),
       st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**31))
def test_mlx_reads_the_same_weights(fmt: str, rows: int, groups: int, seed: int) -> None:
    kind = parse_format(fmt)
    weight = torch.randn(8 * rows, 128 * groups, generator=torch.Generator().manual_seed(seed))
    linear = LinearWeights("layer", kind, (8 * rows, 128 * groups),
                           pack_for(weight, kind, torch.float32, torch.device("cpu")), None, None)
    own = linear.dense(torch.float32).numpy()
    parts = [mx.array(linear_tensors(linear)[f"layer.{part}"].numpy()) for part in ("weight", "scales", "biases")]
    found = np.array(mx.dequantize(parts[0], *(part.astype(mx.float32) for part in parts[1:]),
                                   group_size=kind.block, bits=kind.bits))
    if CONSUMERS["mlx"].loads(kind):
        assert (found == own).all()
    else:  # a rounding of the scale (times the code) and of the bias
        allowed = 2**-11 * (2**kind.bits + np.abs(parts[2] / parts[1]).max().item()) * np.abs(parts[1]).max().item()
        assert np.abs(found - own).max() <= allowed


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    case = Case(2, "llama", True, 2, "bfloat16", ("sym2-g64", "sym3-g32", "sym8-g64", "fp16"), (1, 4, 0, 3))
    run = build(case, tmp_path_factory.mktemp("mlx"))
    exported(run.folder, ["mlx"])
    return run


def test_packed_bytes_are_those_that_serving_predicts(run: FinishedRun) -> None:
    tensors = load_file(run.folder / FOLDER / "model.safetensors")
    for name, linear in weights_of(run).linears.items():
        sizes = [tensors[f"{name}.{part}"].nbytes if f"{name}.{part}" in tensors else 0
                 for part in ("weight", "scales", "biases")]
        assert (sizes[0], sizes[1] + sizes[2]) == CONSUMERS["mlx"].matrix_bytes(linear.format, *linear.shape)
