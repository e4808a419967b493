"""Linears and tables over the blocks of a GGUF file, as they are stored (``codes=stored``).

Unpacked weights are those of ``gguf.quants.dequantize`` in fp32, bit for bit. Functions of a type take blocks,
``n x bytes`` (uint8), and return weights, ``n x weights``; layouts: ``ggml-common.h`` of llama.cpp. k-quants multiply a
block's scale and offset by 4 to 8 bits for each run of 16 or 32 weights. Codes of IQ types are looked up in the tables
of the package ``gguf``: those of 1 to 3 bits name 4 or 8 weights at a time, beside which the signs are.
"""

from collections.abc import Callable, Mapping
from functools import cache

import gguf
import torch
from torch import Tensor

from qra_bo.finetune.quantization.base import HalfLinear, State, UnquantisedBackend, tile_numel
from qra_bo.finetune.quantization.tables import PackedTable
from qra_bo.memory.file_formats import TYPES
from qra_bo.space.space import StorageFormat
from qra_bo.utils.errors import ConfigError

SCALES: Mapping[str, tuple[int, ...]] = {name: (0,) for name in TYPES} | dict.fromkeys(
    ("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)) | {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,),
                                                 "TQ2_0": (64,), "IQ1_M": (), "MXFP4": ()}
"""Where the fp16 numbers of a block begin: its scale, and its offset where it has one. IQ1_M has a scale in pieces,
MXFP4 an exponent."""


@cache
def tables_of(name: str, device: torch.device) -> tuple[Tensor, ...]:
    """Return the values of a type's codes, and all rows of signs where it has some; rows of 4 or 8 values (int8) are
    one integer each. IQ1 has its offset in the values, once for each sign, in units of the offset."""
    if not TYPES[name].table:
        return ()
    kind = gguf.quants.IQ4_NL if name == "IQ4_XS" else getattr(gguf.quants, name)
    if hasattr(kind, "kvalues"):
        return (torch.tensor(kind.kvalues, dtype=torch.int8, device=device),)
    kind.init_grid()
    tables = [torch.from_numpy(kind.grid).view(kind.grid_shape)]
    if name.startswith("IQ1"):
        tables = [torch.cat((tables[0] + kind.delta, tables[0] - kind.delta)) / kind.delta]
    else:
        octets = list(gguf.quants.IQ2_XXS.ksigns) if "X" in name else range(256)
        tables.append(1 - 2 * (torch.tensor(octets).unsqueeze(1) >> torch.arange(8) & 1))
    return tuple(rows.to(device, torch.int8).view(torch.int64 if rows.shape[1] == 8 else torch.int32).view(-1)
                 for rows in tables)


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
    numbers = [_half(flat, at) for at in SCALES[fmt.name]]
    if not numbers:
        numbers = [_half(_in_pieces(flat)) if fmt.name == "IQ1_M" else 12 * _power(flat)]  # 12: MXFP4's largest value
    return all(bool(torch.isfinite(part).all()) for part in numbers)


def _half(b: Tensor, at: int = 0) -> Tensor:
    return b[:, at:at + 2].contiguous().view(torch.float16).float()


def _signed(b: Tensor) -> Tensor:
    return b.contiguous().view(torch.int8).float()


def _fields(words: Tensor, bits: int, run: int) -> Tensor:
    """Return the bit fields of ``n x bytes`` as ``n x codes``: of every ``run`` bytes all lowest fields come first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=words.device).view(-1, 1)
    fields = words.reshape(len(words), -1, 1, run) >> shifts
    return fields.bitwise_and_((1 << bits) - 1).view(len(words), -1)


def _above_4(upper: Tensor, lower: Tensor) -> Tensor:
    """Return codes of 5 or 6 bits, of which ``lower`` are the lowest 4; ``upper`` is overwritten."""
    return upper.bitwise_left_shift_(4).bitwise_or_(lower)


def _five(b: Tensor) -> Tensor:
    return _above_4(_fields(b[:, :4], 1, 1), _fields(b[:, 4:], 4, 16)).float()


def _runs(codes: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return ``code * scale - offset``, with one scale and offset, ``n x runs``, for each run of a block."""
    weights = codes.float().view(*scale.shape, -1).mul_(scale.unsqueeze(-1))
    return (weights if offset is None else weights.sub_(offset.unsqueeze(-1))).view(len(codes), -1)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Return the rows of a table, as int8, at indices ``n x rows``."""
    return table.index_select(0, index.reshape(-1).int()).view(torch.int8).view(len(index), -1)


def _looked_up(name: str, index: Tensor, scale: Tensor, signs: Tensor | None = None) -> Tensor:
    """Return ``value * scale`` of a type's values, with the signs of the rows ``signs``; ``scale`` as in ``_runs``."""
    values, *of_signs = tables_of(name, index.device)
    codes = _rows(values, index)
    return _runs(codes if signs is None else codes.mul_(_rows(of_signs[0], signs)), scale)


def _four(words: Tensor, bits: int) -> Tensor:
    """Return the four lowest fields of each of ``n x words``, the lowest first, ``n x fields``."""
    shifts = torch.arange(0, 4 * bits, bits, dtype=words.dtype, device=words.device)
    return (words.unsqueeze(-1) >> shifts).bitwise_and_((1 << bits) - 1).view(len(words), -1)


def _wider(lower: Tensor, upper: Tensor) -> Tensor:
    """Return indices of which ``lower`` are the lowest 8 bits."""
    return lower.int().bitwise_or_(upper.int().bitwise_left_shift_(8))


def _q2_k(b: Tensor) -> Tensor:
    scale, offset = _half(b, 80) * (b[:, :16] & 15).float(), _half(b, 82) * (b[:, :16] >> 4).float()
    return _runs(_fields(b[:, 16:80], 2, 32), scale, offset)


def _q3_k(b: Tensor) -> Tensor:
    scales = _above_4(_fields(b[:, 104:108], 2, 4), _fields(b[:, 96:104], 4, 8))
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
    codes = _above_4(_fields(b[:, 128:192], 2, 32), _fields(b[:, :128], 4, 64)).float().sub_(32)
    return _runs(codes, _signed(b[:, 192:208]).mul_(_half(b, 208)))


def _iq4_xs(b: Tensor) -> Tensor:
    scale = _above_4(_fields(b[:, 2:4], 2, 1), _fields(b[:, 4:8], 4, 1)).float().sub_(32)
    return _looked_up("IQ4_XS", _fields(b[:, 8:], 4, 16), scale.mul_(_half(b)))


def _scaled(b: Tensor, step: float, codes: Tensor) -> Tensor:
    """Return the scales of runs: odd multiples, whose halves round down to ``codes``, of half a ``step``."""
    return codes.float().add_(0.5).mul_(_half(b) * step)


def _xxs(name: str, step: float, b: Tensor, index: Tensor, words: Tensor) -> Tensor:
    """Each of 8 words has 4 bits of scale, and below four rows of signs, in 7 bits each."""
    words = words.contiguous().view(torch.int32).view(len(b), -1)
    return _looked_up(name, index.flatten(1), _scaled(b, step, words >> 28 & 15), _four(words, 7))


def _iq2_xs(b: Tensor) -> Tensor:
    words = b[:, 2:66].contiguous().view(torch.int16)
    return _looked_up("IQ2_XS", words & 511, _scaled(b, 0.25, _fields(b[:, 66:], 4, 1)), words >> 9 & 127)


def _iq1_s(b: Tensor) -> Tensor:
    words = b[:, 34:].contiguous().view(torch.int16)
    upper = _four(words, 3).bitwise_or_((words >> 12 & 8).repeat_interleave(4, 1))
    return _looked_up("IQ1_S", _wider(b[:, 2:34], upper), _scaled(b, 0.25, words >> 12 & 7))


def _in_pieces(b: Tensor) -> Tensor:
    """Return the bytes of IQ1_M's scale, ``n x 2``: the upper four bits of each of its last four words."""
    upper = b[:, 49::2] >> 4
    return upper[:, ::2] | upper[:, 1::2] << 4


def _iq1_m(b: Tensor) -> Tensor:
    scale = _scaled(_in_pieces(b), 0.25, _four(b[:, 48:].contiguous().view(torch.int16), 3))
    return _looked_up("IQ1_M", _wider(b[:, :32], _fields(b[:, 32:48], 4, 1)), scale)


def _tq1_0(b: Tensor) -> Tensor:
    """A byte holds the digits of a fraction to the base of three."""
    powers = torch.tensor((1, 3, 9, 27, 81), dtype=torch.uint8, device=b.device).view(-1, 1)
    tails = torch.cat([(b[:, start:stop].unsqueeze(1) * powers[:n]).flatten(1)  # in 256ths, whole numbers cut off
                       for start, stop, n in ((0, 32, 5), (32, 48, 5), (48, 52, 4))], 1)
    return tails.float().mul_(3 / 256).floor_().sub_(1).mul_(_half(b, 52))


def _power(b: Tensor) -> Tensor:
    """Return half the power of two whose biased exponent is a block's first byte."""
    exponent = b[:, :1].int()
    return torch.where(exponent < 2, exponent + 1 << 21, exponent - 1 << 23).view(torch.float32)


_WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": lambda b: _fields(b[:, 2:], 4, 16).float().sub_(8).mul_(_half(b)),
    "Q4_1": lambda b: _fields(b[:, 4:], 4, 16).float().mul_(_half(b)).add_(_half(b, 2)),
    "Q5_0": lambda b: _five(b[:, 2:]).sub_(16).mul_(_half(b)),
    "Q5_1": lambda b: _five(b[:, 4:]).mul_(_half(b)).add_(_half(b, 2)),
    "Q8_0": lambda b: _signed(b[:, 2:]).mul_(_half(b)),
    "IQ4_NL": lambda b: _looked_up("IQ4_NL", _fields(b[:, 2:], 4, 16), _half(b)),
    "MXFP4": lambda b: _looked_up("MXFP4", _fields(b[:, 1:], 4, 16), _power(b)),
    "TQ2_0": lambda b: _fields(b[:, :64], 2, 32).float().sub_(1).mul_(_half(b, 64)),
    "IQ3_XXS": lambda b: _xxs("IQ3_XXS", 0.5, b, b[:, 2:66], b[:, 66:]),
    "IQ2_XXS": lambda b: _xxs("IQ2_XXS", 0.25, b, *b[:, 2:].view(len(b), -1, 2, 4).unbind(2)),
    "IQ2_S": lambda b: _looked_up("IQ2_S", _wider(b[:, 2:34], _fields(b[:, 66:74], 2, 1)),
                                  _scaled(b, 0.25, _fields(b[:, 74:], 4, 1)), b[:, 34:66]),
    "IQ3_S": lambda b: _looked_up("IQ3_S", _wider(b[:, 2:66], _fields(b[:, 66:74], 1, 1)),
                                  _scaled(b, 2, _fields(b[:, 106:], 4, 1)), b[:, 74:106]),
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs, "IQ1_S": _iq1_s, "IQ1_M": _iq1_m, "TQ1_0": _tq1_0,
    "IQ2_XS": _iq2_xs, "F16": _half, "Q4_K": lambda b: _affine_k(_fields(b[:, 16:], 4, 32), b),
    "Q5_K": lambda b: _affine_k(_above_4(_fields(b[:, 16:48], 1, 32), _fields(b[:, 48:], 4, 32)), b)}


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

    def tables(self, fmt: StorageFormat, device: torch.device) -> tuple[Tensor, ...]:
        return tables_of(fmt.name, device)

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        columns = shape[1] // fmt.block * TYPES[fmt.name].size
        return {"codes": torch.empty(shape[0], columns, dtype=torch.uint8, device="meta")}
