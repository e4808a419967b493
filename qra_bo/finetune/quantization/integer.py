"""Integer grids that other tools load as they are: ``(q - z) * s`` with codes ``q`` of 2 to 8 bits.

In the ``sym`` formats ``z`` is the middle code, ``2^(bits - 1)``, and ``s`` may be negative: there is one level more on
the side of the negative codes, which should be that of the largest weight. In the ``int`` formats ``z`` is an integer
among the codes, and ``s`` is positive. A group is a run of columns of one row.

Scales are values of both bf16 and fp16: at most 8 significant bits, within fp16's normal range. ``q - z`` has at most 8
bits, so that the product is exact in fp32 and is rounded once, to the compute type; a consumer that computes it in bf16
or fp16 gets the same weight.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qra_bo.finetune.quantization.base import State
from qra_bo.finetune.quantization.grouped import GroupedBackend
from qra_bo.finetune.threads import ANY_ORDER, compiled
from qra_bo.memory.formats import has_zeros
from qra_bo.space.space import StorageFormat

LEAST_SCALE, LARGEST_SCALE = 2.0 ** -14, 65280.0
"""Smallest normal number of fp16, and the largest number of both fp16 and bf16."""
_FACTORS = {2: (0.40, 1.10, 29), 3: (0.60, 1.12, 27), 4: (0.80, 1.12, 17), 5: (0.90, 1.05, 11), 6: (0.95, 1.03, 9),
            8: (0.985, 1.02, 8)}
"""First, last and number of factors by bit-width. Fewer levels gain from a smaller scale, which cuts off the largest
weights; one above 1 reaches the largest weight on the shorter side of a symmetric grid.

For a new width start from the lines of its neighbours: with every bit the range narrows about 1. Take the fewest
factors whose error is at most 0.5 % (up to 4 bits) or 2.5 % (above) over that of 400 factors from 0.3 to 1.3;
``tests/finetune/quantization/test_integer.py`` checks that. Each factor costs a pass over the weights that are packed,
and is worth less where errors are small."""


def factors(bits: int, symmetric: bool) -> list[float]:
    """Return the factors of candidate scales. A negative one turns the sides of a symmetric grid: with 4 levels, 2 on
    one side of zero and 1 on the other, the longer side is not always best for the largest weight."""
    first, last, count = _FACTORS[bits]
    up = [first + (last - first) * i / (count - 1) for i in range(count)]
    return [*up, *(-f for f in up)] if symmetric and bits == 2 else up


def candidates(groups: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Return scales and zeros, ``C x n x 1`` in fp32, that are tried for groups of weights (``n x group``, fp32).

    Scales are factors times that of the range of the weights, rounded to values of bf16 in the normal range of fp16;
    NaN where that is exceeded. Zeros put the middle of the codes on that of the weights, or in 2 bits one code beside
    it too; symmetric grids have none.
    """
    top = (1 << bits) - 1
    low, high = groups.amin(dim=1, keepdim=True).clamp_max_(0.0), groups.amax(dim=1, keepdim=True).clamp_min_(0.0)
    base = torch.where(high > -low, -high, -low) / (1 << bits - 1) if symmetric else (high - low) / top
    scale = (base * torch.tensor(factors(bits, symmetric), device=base.device).view(-1, 1, 1)).bfloat16().float()
    scale = torch.where(scale.abs() < LEAST_SCALE, LEAST_SCALE, scale)
    scale = torch.where(scale.abs() <= LARGEST_SCALE, scale, torch.nan)
    if symmetric:
        return scale, None
    central = torch.round(top / 2 - (high + low) / (2 * scale))
    beside = (0, -1, 1) if bits == 2 else (0,)
    return scale.repeat(len(beside), 1, 1), torch.cat([central + k for k in beside]).clamp_(0.0, top)


def search(groups: Tensor, bits: int, symmetric: bool, roots: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (``n x group``), scales and zeros (``n x 1``), all in fp32, of groups of weights (``n x group``).

    Errors are multiplied by ``roots`` (``n x group``) before they are squared and added up. A scale is NaN where
    weights are not finite or too large. Of candidates with equal errors the first is taken.
    """
    top, middle = (1 << bits) - 1, 1 << bits - 1
    scales, zeros = candidates(groups, bits, symmetric)
    lowest = torch.full_like(scales, -middle) if zeros is None else -zeros
    of_candidates = _best_on_host if groups.device.type == "cpu" else _best_on_device
    best = of_candidates(groups, torch.ones_like(groups[:1]) if roots is None else roots, scales, lowest, top)
    scale, low = (tensor.gather(0, best.view(1, -1, 1))[0] for tensor in (scales, lowest))
    return torch.div(groups, scale).round_().sub_(low).clamp_(0, top), scale, -low


def _best_on_device(groups: Tensor, roots: Tensor, scales: Tensor, lowest: Tensor, top: int) -> Tensor:
    """Return the index of every group's candidate of least error, ``n``, among those whose levels are ``lowest`` to
    ``lowest + top``; there may be one row of ``roots`` for all groups."""
    errors = torch.empty(scales.shape[:2], device=groups.device)
    for scale, low, error in zip(scales, lowest, errors, strict=True):
        level = torch.div(groups, scale).round_().clamp_(low, low + top)
        torch.sum(torch.addcmul(groups, level, scale, value=-1).mul_(roots).square_(), dim=1, out=error)
    return errors.nan_to_num_(torch.inf, torch.inf).argmin(dim=0)


def _best_on_host(groups: Tensor, roots: Tensor, scales: Tensor, lowest: Tensor, top: int) -> Tensor:
    """Like ``_best_on_device``, in one pass over the weights: with torch's operators it takes six times as long."""
    best = torch.zeros(len(groups), dtype=torch.int64)
    arrays = (tensor.numpy() for tensor in (groups, roots, scales[..., 0], scales[..., 0].reciprocal(), lowest[..., 0]))
    _compiled()(*arrays, np.float32(top), best.numpy())
    return best


@cache
def _compiled() -> Any:
    """Return the compiled function ``(groups, roots, scales, inverses, lowest, top, best)``, which fills ``best``."""
    def fill(groups: Any, roots: Any, scales: Any, inverses: Any, lowest: Any, top: Any, best: Any) -> None:
        for g in range(len(groups)):
            root, least = roots[g % len(roots)], np.float32(np.inf)
            for c in range(len(scales)):
                scale, inverse, low, total = scales[c, g], inverses[c, g], lowest[c, g], np.float32(0)
                for i in range(groups.shape[1]):  # a weight between two levels errs alike with both
                    level = min(max(np.rint(groups[g, i] * inverse), low), low + top)
                    error = (groups[g, i] - level * scale) * root[i]
                    total += error * error
                if total < least:
                    best[g], least = c, total

    return compiled(fill, ANY_ORDER)


class IntegerBackend(GroupedBackend):
    """Integer storage; scales (and zeros) are those of the least squared error on a grid of candidates."""

    by_row = in_tiles = True
    VERSION = 2
    metadata_types = torch.bfloat16, torch.uint8

    def pack_for_inputs(self, weight: Tensor, fmt: StorageFormat, device: torch.device, importance: Tensor) -> State:
        return self.pack(weight, fmt, device, importance)

    def solve(self, groups: Tensor, fmt: StorageFormat, roots: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return search(groups, fmt.bits, not has_zeros(fmt), roots)


class OrderedBackend(IntegerBackend):
    """``int`` storage whose groups are of columns in any order, as in a file: ``columns`` (``in``) is the place of each
    column among those that lie group by group; what is packed here needs none."""

    def empty_state(self, fmt: StorageFormat, shape: tuple[int, int], dtype: torch.dtype) -> State:
        columns = torch.empty(shape[1], dtype=torch.int32, device="meta")
        return {**super().empty_state(fmt, shape, dtype), "columns": columns}
