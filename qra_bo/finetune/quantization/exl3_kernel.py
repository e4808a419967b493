"""One Triton kernel that unpacks a matrix of EXL3's codes; importing this module needs Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qra_bo.finetune.quantization.base import State
from qra_bo.memory.file_formats import CODEBOOKS, EXL3, STRIP
from qra_bo.space.space import StorageFormat

WARPS = 8
"""Of a program, whose 128 x 128 weights stay in registers: four warps have too few, sixteen exchange more."""


@triton.jit  # type: ignore[untyped-decorator]
def unpack_kernel(codes, suh, svh, out, first, last, width, tiles, HALF_BITS: tl.constexpr,  # type: ignore[no-untyped-def]
                  BOOK: tl.constexpr, FACTOR: tl.constexpr, STRIP: tl.constexpr):
    strip, block = first // STRIP + tl.program_id(0), tl.program_id(1)
    run = tl.arange(0, STRIP * STRIP // 8)[:, None]  # eight weights of a ring; see ``_places``
    ring = codes + ((block * 8 + (run >> 2 & 7)) * tiles + strip * 8 + (run >> 8)) * (4 * HALF_BITS)
    start = ((run >> 5 & 7) * 4 + (run & 3)) * (4 * HALF_BITS) + (tl.arange(1, 9) * HALF_BITS // 2 - 16)[None, :]
    start = tl.where(start < 0, start + 128 * HALF_BITS, start)
    word = start >> 5
    bits = tl.load(ring + word).to(tl.uint64) << 32
    bits |= tl.load(ring + tl.where(word == 4 * HALF_BITS - 1, 0, word + 1))
    state = ((bits >> (48 - (start & 31)).to(tl.uint64)).to(tl.uint32) & 0xFFFF) * FACTOR
    if BOOK == "mul1":
        pairs = (state & 0xFF00FF) + (state >> 8 & 0xFF00FF)
        octets = (pairs & 0xFFFF) + (pairs >> 16)
        value = (1024 + octets).to(tl.float32) * (1774 / 2**18) - 1329 / 2**7  # exact, fused or not
    else:
        state = (state + 64248484 * (BOOK == "3inst") & 0x8FFF8FFF) ^ 0x3B603B60
        value = (state & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        value += (state >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    value = tl.reshape(value.to(tl.float16).to(tl.float32), (8, 8, 8, 4, 2, 2, 2))
    value = tl.permute(value, (0, 4, 1, 2, 5, 3, 6))  # bits of outputs, then of inputs
    for _ in tl.static_range(14):  # ``_hadamard`` of the lowest bit, which becomes the highest
        low, high = tl.split(tl.reshape(value, (STRIP * STRIP // 2, 2)))
        value = tl.trans(tl.join(low + high, low - high))
    side = tl.arange(0, STRIP)
    row, column = strip * STRIP + side, block * STRIP + side
    value = tl.reshape(value, (STRIP, STRIP)) * tl.load(suh + column).to(tl.float32)[None, :]
    value *= (tl.load(svh + row).to(tl.float32) / STRIP)[:, None]
    tl.store(out + (row - first).to(tl.int64)[:, None] * width + column[None, :], value.to(out.dtype.element_ty),
             mask=((row >= first) & (row < last))[:, None] & (column < width)[None, :])


def fused_unpack(state: State, fmt: StorageFormat, rows: range, width: int, dtype: torch.dtype) -> Tensor:
    """Return outputs of a matrix with ``width`` inputs, ``rows x width`` in ``dtype``, without other memory."""
    codes, (book, half_bits) = state["codes"], EXL3[fmt.name]
    out = torch.empty(len(rows), width, dtype=dtype, device=codes.device)
    grid = -(-rows.stop // STRIP) - rows.start // STRIP, codes.shape[0] * 16 // STRIP
    unpack_kernel[grid](codes.view(torch.uint32), state["suh"], state["svh"], out, rows.start, rows.stop, width,
                        codes.shape[1], half_bits, book, CODEBOOKS[book], STRIP, num_warps=WARPS)
    return out
