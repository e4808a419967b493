"""One Triton kernel that unpacks a whole matrix of codes in planes; importing this module needs Triton."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from qra_bo.memory.formats import Plane

BLOCK = 1024
"""Weights of one program of the kernel."""


@triton.jit  # type: ignore[untyped-decorator]
def unpack_kernel(upper, lower, scale, zero, out, first, numel, upper_words, lower_words, GROUP: tl.constexpr,  # type: ignore[no-untyped-def]
            UPPER_BITS: tl.constexpr, UPPER_FIELDS: tl.constexpr, LOWER_BITS: tl.constexpr,
            LOWER_FIELDS: tl.constexpr, MIDDLE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    weight = first + at
    place = weight // upper_words
    word = tl.load(upper + (weight - place * upper_words), mask=inside, other=0).to(tl.int32)
    code = (word >> UPPER_BITS * (UPPER_FIELDS - 1 - place)) & ((1 << UPPER_BITS) - 1)
    if LOWER_BITS > 0:
        place = weight // lower_words
        word = tl.load(lower + (weight - place * lower_words), mask=inside, other=0).to(tl.int32)
        code = (code << LOWER_BITS) | ((word >> LOWER_BITS * (LOWER_FIELDS - 1 - place)) & ((1 << LOWER_BITS) - 1))
    group = at // GROUP
    shift = MIDDLE
    if MIDDLE == 0:
        shift = tl.load(zero + group, mask=inside, other=0).to(tl.float32)
    step = tl.load(scale + group, mask=inside, other=0).to(tl.float32)
    value = (code.to(tl.float32) - shift) * step
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def fused_unpack(words: Sequence[Tensor], planes: Sequence[Plane], scale: Tensor, zero: Tensor | int, group: int,
                 dtype: torch.dtype, first: int = 0) -> Tensor:
    """Return the weights, ``groups x group``, of packed codes.

    Args:
        words: Packed codes of every plane, the upper bits first.
        planes: How they are packed.
        scale: Of every group.
        zero: Of every group, or one positive number for all.
        group: Weights of a group.
        dtype: Type of the weights.
        first: Number of the first group among those of ``words``.
    """
    out = torch.empty(scale.numel(), group, dtype=dtype, device=scale.device)
    lower, plane = (words[1], planes[1]) if len(planes) > 1 else (words[0], Plane(0, 1, 1))
    zeros, middle = (scale, zero) if isinstance(zero, int) else (zero, 0)
    unpack_kernel[(triton.cdiv(out.numel(), BLOCK),)](
        words[0], lower, scale, zeros, out, first * group, out.numel(), words[0].numel(), lower.numel(), group,
        planes[0].bits, planes[0].per_word, plane.bits, plane.per_word, middle, BLOCK)
    return out
