"""One Triton kernel that unpacks a whole matrix of codes in planes; importing this module needs Triton."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from qra_bo.finetune.quantization.base import PLANE_NAMES
from qra_bo.memory.formats import Plane

BLOCK = 1024
"""Weights of one program of the kernel."""


@triton.jit  # type: ignore[untyped-decorator]
def _fields(words, count, weight, inside, BITS: tl.constexpr, FIELDS: tl.constexpr):  # type: ignore[no-untyped-def]
    place = weight // count
    word = tl.load(words + (weight - place * count), mask=inside, other=0).to(tl.int32)
    return (word >> BITS * (FIELDS - 1 - place)) & ((1 << BITS) - 1)


@triton.jit  # type: ignore[untyped-decorator]
def unpack_kernel(upper, lower, lowest, scale, zero, out, first, numel, upper_words, lower_words, lowest_words,  # type: ignore[no-untyped-def]
                  GROUP: tl.constexpr, UPPER_BITS: tl.constexpr, UPPER_FIELDS: tl.constexpr,
                  LOWER_BITS: tl.constexpr, LOWER_FIELDS: tl.constexpr, LOWEST_BITS: tl.constexpr,
                  LOWEST_FIELDS: tl.constexpr, MIDDLE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    weight = first + at
    code = _fields(upper, upper_words, weight, inside, UPPER_BITS, UPPER_FIELDS)
    if LOWER_BITS > 0:
        code = (code << LOWER_BITS) | _fields(lower, lower_words, weight, inside, LOWER_BITS, LOWER_FIELDS)
    if LOWEST_BITS > 0:
        code = (code << LOWEST_BITS) | _fields(lowest, lowest_words, weight, inside, LOWEST_BITS, LOWEST_FIELDS)
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
    spare = len(PLANE_NAMES) - len(words)  # planes of no bits, which are not read
    words, planes = [*words, *[words[0]] * spare], [*planes, *[Plane(0, 1, 1)] * spare]
    zeros, middle = (scale, zero) if isinstance(zero, int) else (zero, 0)
    unpack_kernel[(triton.cdiv(out.numel(), BLOCK),)](
        *words, scale, zeros, out, first * group, out.numel(), *(plane.numel() for plane in words), group,
        *(number for plane in planes for number in (plane.bits, plane.per_word)), middle, BLOCK)
    return out
