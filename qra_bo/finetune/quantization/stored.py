"""Linears and tables over the blocks of a GGUF file, as they are stored (``codes=stored``).

Unpacked weights are those of ``gguf.quants.dequantize`` in fp32, bit for bit. Functions of a type take blocks,
``n x bytes`` (uint8), and return weights, ``n x weights``; layouts: ``ggml-common.h`` of llama.cpp. k-quants multiply a
block's scale and offset by 4 to 8 bits for each run of 16 or 32 weights.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qra_bo.finetune.quantization.base import HalfLinear, State, UnquantisedBackend, tile_numel
from qra_bo.finetune.quantization.tables import PackedTable
from qra_bo.memory.file_formats import TYPES
from qra_bo.space.space import StorageFormat
from qra_bo.utils.errors import ConfigError

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of IQ4_NL and IQ4_XS mean."""
SCALES: Mapping[str, tuple[int, ...]] = {name: (0,) for name in TYPES} | dict.fromkeys(
    ("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)) | {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}
"""Where the fp16 numbers of a block begin: its scale, and its offset where it has one."""


def unpacked(blocks: Tensor, fmt: StorageFormat, dtype: torch.dtype, target: torch.device | None = None) -> Tensor:
    """Return the weights, ``out x in`` in ``dtype``, of a matrix in blocks, ``out x bytes``. ``target`` is the device
    that tensors on the meta device stand for."""
    flat = blocks.reshape(-1, TYPES[fmt.name].size)
    out = torch.empty(len(flat), fmt.block, dtype=dtype, device=blocks.device)
    step = max(1, tile_numel(target or blocks.device) // fmt.block)
    for part, into in zip(torch.split(flat, step), torch.split(out, step), strict=True):
        into.copy_(_WEIGHTS[fmt.name](part))
        if target is not None:  # on the meta device one tile stands for all
            break
    return out.view(len(blocks), -1)


def finite(blocks: Tensor, fmt: StorageFormat) -> bool:
    """Whether every scale and offset in the blocks of a matrix is a finite number."""
    flat = blocks.view(-1, TYPES[fmt.name].size)
    return all(bool(torch.isfinite(_half(flat, at)).all()) for at in SCALES[fmt.name])


def _half(b: Tensor, at: int = 0) -> Tensor:
    return b[:, at:at + 2].contiguous().view(torch.float16).float()


def _signed(b: Tensor) -> Tensor:
    return b.contiguous().view(torch.int8).float()


def _fields(words: Tensor, bits: int, run: int) -> Tensor:
    """Return the bit fields of ``n x bytes`` as ``n x codes``: of every ``run`` bytes all lowest fields come first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=words.device).view(-1, 1)
    fields = words.reshape(len(words), -1, 1, run) >> shifts
    return fields.bitwise_and_((1 << bits) - 1).view(len(words), -1)


def _five(upper: Tensor, lower: Tensor) -> Tensor:
    """Return codes of 5 bits: their upper bits, 8 a byte, and the lower ones as in 4 bits."""
    return _fields(upper, 1, 1).bitwise_left_shift_(4).bitwise_or_(_fields(lower, 4, 16)).float()


def _runs(codes: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return ``code * scale - offset``, with one scale and offset, ``n x runs``, for each run of a block."""
    weights = codes.float().view(*scale.shape, -1).mul_(scale.unsqueeze(-1))
    return (weights if offset is None else weights.sub_(offset.unsqueeze(-1))).view(len(codes), -1)


def _levels(codes: Tensor) -> Tensor:
    levels = torch.tensor(LEVELS, dtype=torch.float32, device=codes.device)
    return levels.index_select(0, codes.reshape(-1).int()).view(codes.shape)


def _q2_k(b: Tensor) -> Tensor:
    scale, offset = _half(b, 80) * (b[:, :16] & 15).float(), _half(b, 82) * (b[:, :16] >> 4).float()
    return _runs(_fields(b[:, 16:80], 2, 32), scale, offset)


def _q3_k(b: Tensor) -> Tensor:
    scales = _fields(b[:, 96:104], 4, 8).bitwise_or_(_fields(b[:, 104:108], 2, 4).bitwise_left_shift_(4))
    upper = _fields(b[:, :32], 1, 32).bitwise_left_shift_(2)  # a code without this bit is 4 less
    codes = _fields(b[:, 32:96], 2, 32).bitwise_or_(upper).float().sub_(4)
    return _runs(codes, scales.float().sub_(32).mul_(_half(b, 108)))


def _affine_k(codes: Tensor, b: Tensor) -> Tensor:
    """Scale and offset have 6 bits for each of 8 runs, in 12 bytes."""
    low, middle, high = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = torch.cat((low & 63, (high & 15) | ((low >> 2) & 48)), 1).float()
    offset = torch.cat((middle & 63, (high >> 4) | ((middle >> 2) & 48)), 1).float()
    return _runs(codes, scale.mul_(_half(b)), offset.mul_(_half(b, 2)))


def _q6_k(b: Tensor) -> Tensor:
    upper = _fields(b[:, 128:192], 2, 32).bitwise_left_shift_(4)
    codes = upper.bitwise_or_(_fields(b[:, :128], 4, 64)).float().sub_(32)
    return _runs(codes, _signed(b[:, 192:208]).mul_(_half(b, 208)))


def _iq4_xs(b: Tensor) -> Tensor:
    scale = _fields(b[:, 2:4], 2, 1).bitwise_left_shift_(4).bitwise_or_(_fields(b[:, 4:8], 4, 1)).float().sub_(32)
    return _runs(_levels(_fields(b[:, 8:], 4, 16)), scale.mul_(_half(b)))


_WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": lambda b: _fields(b[:, 2:], 4, 16).float().sub_(8).mul_(_half(b)),
    "Q4_1": lambda b: _fields(b[:, 4:], 4, 16).float().mul_(_half(b)).add_(_half(b, 2)),
    "Q5_0": lambda b: _five(b[:, 2:6], b[:, 6:]).sub_(16).mul_(_half(b)),
    "Q5_1": lambda b: _five(b[:, 4:8], b[:, 8:]).mul_(_half(b)).add_(_half(b, 2)),
    "Q8_0": lambda b: _signed(b[:, 2:]).mul_(_half(b)),
    "IQ4_NL": lambda b: _levels(_fields(b[:, 2:], 4, 16)).mul_(_half(b)),
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs, "F16": _half,
    "Q4_K": lambda b: _affine_k(_fields(b[:, 16:], 4, 32), b),
    "Q5_K": lambda b: _affine_k(_fields(b[:, 16:48], 1, 32).bitwise_left_shift_(4).bitwise_or_(
        _fields(b[:, 48:], 4, 32)), b)}


class StoredLinear(HalfLinear):
    """A frozen linear layer whose ``weight`` holds blocks, ``out x bytes``."""

    def unpack(self) -> Tensor:
        return unpacked(self.weight.data, self.fmt, self.compute_dtype, self.target)


class StoredTable(PackedTable):
    """An embedding or a head in blocks, ``v x bytes``."""

    def _rows(self, ids: Tensor) -> Tensor:
        return unpacked(self.codes[ids.reshape(-1)], self.fmt, self.compute_dtype).view(*ids.shape, self.shape[1])

    def _tile(self, first: int, last: int) -> Tensor:
        return unpacked(self.codes[first:last], self.fmt, self.compute_dtype, self.target)


class StoredBackend(UnquantisedBackend):
    """Blocks of GGUF's types, which are read from a file and never made here."""

    layer = StoredLinear

    def pack(self, weight: Tensor, fmt: StorageFormat, device: torch.device) -> State:
        raise ConfigError(f"{fmt.name} is a type of GGUF files, whose codes codes=stored reads; none are made here")

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        columns = shape[1] // fmt.block * TYPES[fmt.name].size
        return {"codes": torch.empty(shape[0], columns, dtype=torch.uint8, device="meta")}
