"""Codes of groups in packed planes, and the weights that they stand for: what HQQ and the integer formats share.

Codes are ``groups x group``. A plane packs a bit field of them in words, ``n x group``: field ``k`` of all words, from
the highest on, holds the ``k``-th run of ``n`` groups. Groups are padded to whole words of every plane.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from qra_bo.finetune.quantization.base import PLANE_NAMES, State, tile_numel
from qra_bo.finetune.quantization.fused_unpack import by_kernel, unpacked
from qra_bo.memory.formats import Plane, padded_groups, planes_of
from qra_bo.space.space import StorageFormat

WORD_TYPES = {1: torch.uint8, 4: torch.int32}


def words_of(state: State) -> list[Tensor]:
    """Return the packed planes among packed tensors, the upper bits first."""
    return [state[name] for name in PLANE_NAMES if name in state]


def in_planes(codes: Tensor, fmt: StorageFormat) -> State:
    """Return packed planes, by name, of codes (``groups x group``, uint8)."""
    planes, state = planes_of(fmt), dict[str, Tensor]()
    padding = padded_groups(planes, len(codes)) - len(codes)
    padded = torch.nn.functional.pad(codes, (0, 0, 0, padding)) if padding else codes
    below = fmt.bits
    for name, plane in zip(PLANE_NAMES[:len(planes)], planes, strict=True):
        below -= plane.bits
        words = torch.zeros(len(padded) // plane.per_word, fmt.block, dtype=WORD_TYPES[plane.word_bytes],
                            device=codes.device)
        for place, run in enumerate(padded.view(plane.per_word, -1, fmt.block)):
            field = ((run >> below) & ((1 << plane.bits) - 1)).to(words.dtype)
            words.bitwise_or_(field << plane.bits * (plane.per_word - 1 - place))
        state[name] = words
    return state


def codes_at(words: Sequence[Tensor], fmt: StorageFormat, groups: Tensor) -> Tensor:
    """Return the codes, ``n x group`` (uint8), of the groups with the numbers ``groups`` (``n``), in any order; packed
    planes have the upper bits first."""
    codes: Tensor | None = None
    for packed, plane in zip(words, planes_of(fmt), strict=True):
        part = packed[groups % len(packed)]
        if plane.per_word > 1:
            place = torch.div(groups, len(packed), rounding_mode="floor")
            shift = (plane.bits * (plane.per_word - 1 - place)).to(part.dtype).unsqueeze(1)
            part.bitwise_right_shift_(shift).bitwise_and_((1 << plane.bits) - 1)
        codes = part if codes is None else codes.bitwise_left_shift_(plane.bits).bitwise_or_(part)
    assert codes is not None
    return codes.to(torch.uint8)


def weight_of(words: Sequence[Tensor], fmt: StorageFormat, scale: Tensor, zero: Tensor | int, shape: tuple[int, int],
              dtype: torch.dtype, target: torch.device | None, first: int = 0) -> Tensor:
    """Return ``(code - zero) * scale``, ``out x in``, computed in fp32 and rounded once to ``dtype``.

    On CUDA one kernel does it. Elsewhere the weights are unpacked tile by tile.

    Args:
        words: Packed planes, the upper bits first.
        fmt: Storage format.
        scale: Of every group, in row-major order.
        zero: Of every group, or one positive number for all.
        shape: (out, in).
        dtype: Type of the weight.
        target: The device that tensors on the meta device stand for; ``None`` on real devices.
        first: Number of the first group among those of the planes, where the matrix is a run of rows of a larger one.
    """
    plain = partial(_tile_by_tile, words, fmt, scale, zero, dtype, target, first)
    if scale.device.type != "cuda":
        return plain().view(shape)
    fast = partial(by_kernel, "plane_kernel", scale.device, words, planes_of(fmt), scale, zero, fmt.block, dtype, first)
    return unpacked((fmt.name, dtype, scale.device), fast, plain).view(shape)


def _tile_by_tile(words: Sequence[Tensor], fmt: StorageFormat, scale: Tensor, zero: Tensor | int, dtype: torch.dtype,
                  target: torch.device | None, begin: int) -> Tensor:
    planes, group, groups = planes_of(fmt), fmt.block, scale.numel()
    scale, zero = scale.view(-1, 1), zero if isinstance(zero, int) else zero.view(-1, 1)
    out = torch.empty(groups, group, dtype=dtype, device=scale.device)
    step = max(1, tile_numel(target or scale.device) // group)
    direct = dtype == torch.float32
    longest = min(step, len(words[-1]), groups)
    scratch = out if direct else torch.empty(longest, group, dtype=torch.float32, device=scale.device)
    for start, end in _runs(words, begin, begin + groups):
        for first in range(start, end, step):
            last = min(first + step, end)
            code, span = _codes(words, planes, first, last), slice(first - begin, last - begin)
            tile = out[span] if direct else scratch[: last - first]
            tile.copy_(code)
            del code  # not alive beside the next
            tile.sub_(zero if isinstance(zero, int) else zero[span].float()).mul_(scale[span].float())
            if not direct:
                out[span] = tile
            if target is not None:  # on the meta device one tile stands for all
                return out
    return out


def _runs(words: Sequence[Tensor], first: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield, of the groups from ``first`` to ``last`` (exclusive), the ends of every run that lies in one field of each
    plane: those of the last plane, which are the shortest."""
    run = len(words[-1])
    while first < last:
        end = min(last, (first // run + 1) * run)
        yield first, end
        first = end


def _codes(words: Sequence[Tensor], planes: Sequence[Plane], first: int, last: int) -> Tensor:
    """Return the codes, ``last - first x group``, of groups in one run; where words hold one, a view of them."""
    code = _field(words[0], planes[0], first, last)
    for lower, plane in zip(words[1:], planes[1:], strict=True):
        code.bitwise_left_shift_(plane.bits).bitwise_or_(_field(lower, plane, first, last))
    return code


def _field(words: Tensor, plane: Plane, first: int, last: int) -> Tensor:
    place, start = divmod(first, len(words))
    codes = words[start : start + last - first]
    return codes if plane.per_word == 1 else \
        (codes >> plane.bits * (plane.per_word - 1 - place)) & ((1 << plane.bits) - 1)
