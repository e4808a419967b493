"""One Triton kernel that unpacks a matrix of trellis codes; importing this module needs Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qra_bo.finetune.quantization.base import State
from qra_bo.finetune.quantization.rings import ROTATION, STATE_BITS, fractions, rotation, table
from qra_bo.memory.formats import RING_STEP, ring_length

GROUPS = 16
"""Runs of eight codes of one program; a product of matrices takes at least 16 rows."""
WARPS = 2
"""Of a program: each reads all 16 rows of a product, so that more warps move more. One takes fewer instructions, and
so many registers that too few programs are on a multiprocessor at once."""


@triton.jit  # type: ignore[untyped-decorator]
def unpack_kernel(codes, scale, steps, levels, turn, fractions, out, height, width, pairs,  # type: ignore[no-untyped-def]
                  LENGTH: tl.constexpr, BITS: tl.constexpr, STATE_BITS: tl.constexpr, BLOCK: tl.constexpr,
                  GROUPS: tl.constexpr):
    ring, block = tl.program_id(0), tl.program_id(2)
    run = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    at = tl.arange(0, BLOCK)
    size: tl.constexpr = LENGTH * BITS // 8
    inside = (run < LENGTH // 8)[:, None]
    first = codes + ring.to(tl.int64) * size * width + (block * BLOCK + at)[None, :]
    before = run * BITS + size
    word = tl.load(first + ((before - 2) % size)[:, None] * width, mask=inside, other=0).to(tl.int32)
    word = word << 8 | tl.load(first + ((before - 1) % size)[:, None] * width, mask=inside, other=0).to(tl.int32)
    signs = tl.load(turn + at[:, None] * BLOCK + at[None, :])
    for byte in tl.static_range(BITS):
        here = tl.load(first + (run * BITS + byte)[:, None] * width, mask=inside, other=0).to(tl.int32)
        word = (word & 0xFFFF) << 8 | here
        for place in tl.static_range(8):
            if ((place + 1) * BITS - 1) // 8 == byte:
                state = word >> (8 * (byte + 1) - (place + 1) * BITS) & (1 << STATE_BITS) - 1
                dense = tl.dot(tl.load(levels + state), signs)  # exact: sums of multiples of the tables' unit
                row = ring * LENGTH + run * 8 + place
                held = (run < LENGTH // 8) & (row < height)
                pair = tl.load(steps + row * pairs + block // 2, mask=held, other=0).to(tl.int32)
                fraction = tl.load(fractions + (pair >> 4 * (block % 2) & 15))
                value = dense * (0.125 * (tl.load(scale + row, mask=held, other=0).to(tl.float32) * fraction))[:, None]
                tl.store(out + row.to(tl.int64)[:, None] * width + (block * BLOCK + at)[None, :],
                         value.to(out.dtype.element_ty), mask=held[:, None])


def fused_unpack(state: State, bits: int, dtype: torch.dtype) -> Tensor:
    """Return the weights, ``out x in`` in ``dtype``, of packed tensors (``TrellisBackend``)."""
    codes, scale, steps = state["codes"], state["scale"], state["steps"]
    height, width, length, device = len(scale), codes.shape[2], ring_length(len(scale)), codes.device
    out = torch.empty(height, width, dtype=dtype, device=device)
    grid = len(codes), triton.cdiv(length // RING_STEP, GROUPS), width // ROTATION
    unpack_kernel[grid](codes, scale, steps, table(bits, device).half(), rotation(device).T.half().contiguous(),
                        fractions(device), out, height, width, steps.shape[1], length, bits, STATE_BITS, ROTATION,
                        GROUPS, num_warps=WARPS)
    return out
