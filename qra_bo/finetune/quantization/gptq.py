"""Codes by GPTQ (arXiv 2210.17323) for weight matrices that get the same inputs, several formats at once.

The loss of a layer depends on the error of its outputs, ``tr(E M E^T)`` for errors ``E`` (``out x in``) of the weights
and second moments ``M`` of inputs (``in x in``). Codes are chosen column by column, and the columns that are still free
compensate the error of a rounded one. Scales are given, those of ``LevelBackend.pack_for_inputs``.

Rows do not depend on each other. On a GPU rows of all matrices and formats are therefore stacked, and one loop over
the columns rounds them together: its cost is the number of launches, whatever the number of rows. On a CPU numba
compiles the loop, as its cost with torch's operators is that of calling them.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qra_bo.finetune.quantization.base import Grid
from qra_bo.finetune.quantization.moments import Inputs
from qra_bo.finetune.threads import compiled

VERSION = 4
"""Goes up with every change of the codes that are chosen here, or of their moments: codes on disk are kept by it."""
HOST = "cpu"
"""Type of the device for which numba compiles the loop."""
BLOCK = 128
"""Columns after which their errors are applied to all later ones at once (the paper's)."""
NARROW = 16
"""Columns within a block after which a GPU applies their errors to the rest of the block at once."""
TILE = 64
"""Rows that a core rounds together: a block of columns of them fits into its first cache."""
STACKED_ROWS = 2048
"""Rows that a CPU holds in fp32 at once."""
STACKED_NUMEL = 1 << 27
"""Weights that a GPU rounds together, half a GiB in fp32."""


_Block = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From weights, scale, offset, factor and codes to fill, of a block of columns, to its errors."""


class _Piece(NamedTuple):
    """Rows ``first`` to ``last`` (exclusive) of a matrix, by its index in a stack."""

    matrix: int
    first: int
    last: int


def compensated_codes(stack: Sequence[tuple[Tensor, Grid]], inputs: Inputs) -> list[Tensor]:
    """Return the codes, ``out x in`` (uint8), of every weight (``out x in``) among the values of its grid.

    All weights have the same ``in``, whose inputs have the moments of ``inputs``.
    """
    n = len(inputs.order)
    back = torch.argsort(inputs.order)
    codes = [torch.empty(weight.shape, dtype=torch.uint8, device=weight.device) for weight, _ in stack]
    host = inputs.factor.device.type == HOST
    together = _pieces([len(weight) for weight, _ in stack], STACKED_ROWS if host else max(1, STACKED_NUMEL // n))
    for pieces in ([piece] for several in together for piece in several) if host else together:
        found = _rounded([(*stack[p.matrix], p) for p in pieces], inputs, host)[back]
        first = 0
        for piece in pieces:
            last = first + piece.last - piece.first
            codes[piece.matrix][piece.first:piece.last] = found[:, first:last].t()
            first = last
    return codes


def _pieces(heights: Sequence[int], rows: int) -> Iterator[list[_Piece]]:
    """Divide the rows of matrices of ``heights`` rows into lists of at most ``rows``."""
    starts = [*itertools.accumulate(heights, initial=0)]
    for first in range(0, starts[-1], rows):
        ends = [(max(0, first - start), min(height, first + rows - start))
                for start, height in zip(starts, heights, strict=False)]
        yield [_Piece(matrix, *end) for matrix, end in enumerate(ends) if end[0] < end[1]]


def _rounded(pieces: Sequence[tuple[Tensor, Grid, _Piece]], inputs: Inputs, host: bool) -> Tensor:
    """Return the codes of ``pieces``, ``in x rows`` in the order of ``inputs``; on the host they are of one grid.

    Everything is transposed: a column of the weights is contiguous.
    """
    order, factor = inputs.order, inputs.factor
    rest = torch.cat([weight[p.first:p.last].float().t().contiguous() for weight, _, p in pieces], dim=1)[order]
    n, rows = rest.shape
    if host:
        levels, middles = _table(pieces[0][1])
        block: _Block = partial(_on_host, levels=levels, middles=middles)
    else:
        low, high, tables = _levels([(grid, p.last - p.first) for _, grid, p in pieces], rest.device)
        block = partial(_on_device, low=low, high=high, tables=tables)
    codes = torch.empty(n, rows, dtype=torch.uint8, device=rest.device)
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        spread = [grid.spread(order[start:end], p.first, p.last) for _, grid, p in pieces]
        scale, offset = (torch.cat([pair[i] for pair in spread], dim=1) for i in range(2))
        errors = block(rest[start:end], scale, offset, factor[start:end, start:end], codes[start:end])
        rest[end:] -= factor[start:end, end:].t() @ errors
    return codes


def _on_device(part: Tensor, scale: Tensor, offset: Tensor, within: Tensor, codes: Tensor, *, low: Tensor, high: Tensor,
               tables: list[tuple[slice, Tensor, Tensor]]) -> Tensor:
    """Fill the codes of a block of columns (``columns x rows``), and return their errors over the factor's pivots."""
    divisor = torch.where(scale > 0, scale, torch.inf)  # a group without a scale holds its offset
    errors, step, chosen = torch.empty_like(part), torch.empty_like(part[:NARROW]), torch.empty_like(part)
    columns = zip(part, scale, offset, divisor, errors, chosen, within.diagonal(), strict=True)  # views
    for j, (weight, scales, offsets, divisors, error, level, pivot) in enumerate(columns):
        position = (weight - offsets).div_(divisors)
        torch.round(position, out=level)
        level.add_((level - position) >= 0.5, alpha=-1)  # of two equally near levels the lower one
        level.clamp_(low, high)
        value = level.clone() if tables else level
        for span, levels, middles in tables:
            index = torch.bucketize(position[span], middles)  # of two equally near levels the lower one
            level[span], value[span] = index, levels[index]
        torch.div(weight - (value * scales).add_(offsets), pivot, out=error)
        first, last = j - j % NARROW, min(j - j % NARROW + NARROW, len(part))
        left = last - j - 1
        part[j + 1:last].sub_(torch.mul(within[j, j + 1:last, None], error, out=step[:left]))
        if left == 0:
            part[last:] -= within[first:last, last:].t() @ errors[first:last]
    codes[:] = chosen.sub_(low)
    return errors


def _on_host(part: Tensor, scale: Tensor, offset: Tensor, within: Tensor, codes: Tensor, *, levels: Tensor,
             middles: Tensor) -> Tensor:
    """Like ``_on_device``, of rows of one grid with the ``levels`` and ``middles`` of ``_table``."""
    errors = torch.empty_like(part)
    _compiled()(*(t.numpy() for t in (part, scale, offset, within, levels, middles, codes, errors)))
    return errors


@cache
def _compiled() -> Any:
    """Return the compiled loop over the columns of a block, which needs no lock of the interpreter."""
    def rounded(part: Any, scale: Any, offset: Any, within: Any, levels: Any, middles: Any, codes: Any,
                errors: Any) -> None:
        columns, rows = part.shape
        for first in range(0, rows, TILE):
            last = min(first + TILE, rows)
            for j in range(columns):
                rest, error = part[j, first:last], errors[j, first:last]
                step, zero, code = scale[j, first:last], offset[j, first:last], codes[j, first:last]
                for r in range(len(rest)):
                    # a group without a scale holds its offset
                    error[r] = (rest[r] - zero[r]) / (step[r] if step[r] > 0 else np.float32(np.inf))
                if len(middles) == 0:
                    for r in range(len(rest)):
                        level = np.rint(error[r])
                        level -= np.float32(level - error[r] >= np.float32(0.5))  # of two equally near the lower one
                        level = min(max(level, levels[0]), levels[-1])
                        code[r] = np.int32(level - levels[0])
                        error[r] = (rest[r] - (level * step[r] + zero[r])) / within[j, j]
                else:
                    for r in range(len(rest)):
                        index = np.int32(0)
                        for m in range(len(middles)):
                            index += np.int32(error[r] > middles[m])  # of two equally near levels the lower one
                        code[r] = index
                        error[r] = (rest[r] - (levels[index] * step[r] + zero[r])) / within[j, j]
                done = j - j % 4  # four columns at a time: later ones are read and written once for all of them
                for k in range(j + 1, min(done + 4, columns)):
                    later, share = part[k, first:last], within[j, k]
                    for r in range(len(later)):
                        later[r] -= share * error[r]
                if j == done + 3:
                    e0, e1, e2 = errors[done, first:last], errors[done + 1, first:last], errors[done + 2, first:last]
                    for k in range(j + 1, columns):
                        later = part[k, first:last]
                        s0, s1, s2, s3 = within[done, k], within[done + 1, k], within[done + 2, k], within[j, k]
                        for r in range(len(later)):
                            later[r] = (((later[r] - s0 * e0[r]) - s1 * e1[r]) - s2 * e2[r]) - s3 * error[r]

    return compiled(rounded)


def _table(grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the levels of a grid and the ``K - 1`` middles between them; no middles of consecutive integers."""
    if isinstance(grid.levels, range):
        return torch.tensor(grid.levels, dtype=torch.float32), torch.empty(0)
    return grid.levels, (grid.levels[1:] + grid.levels[:-1]) / 2


def _levels(pieces: Sequence[tuple[Grid, int]], device: torch.device) \
        -> tuple[Tensor, Tensor, list[tuple[slice, Tensor, Tensor]]]:
    """Return the lowest and the highest level of every row, and the rows whose levels are in a table, with it.

    The lowest and highest level of a table read 0 and infinity.
    """
    lows, highs, tables, first = list[Tensor](), list[Tensor](), list[tuple[slice, Tensor, Tensor]](), 0
    for grid, rows in pieces:
        if isinstance(grid.levels, range):
            ends = float(grid.levels[0]), float(grid.levels[-1])
        else:
            tables.append((slice(first, first + rows), *_table(grid)))
            ends = 0.0, torch.inf
        lows.append(torch.full((rows,), ends[0], device=device))
        highs.append(torch.full((rows,), ends[1], device=device))
        first += rows
    return torch.cat(lows), torch.cat(highs), tables
