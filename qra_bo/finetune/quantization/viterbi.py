"""States of rings by Viterbi's algorithm.

A ring is a closed sequence of ``n`` codes of ``K`` bits. The state of a weight is the window of the last ``L`` bits
that ends with its code, around the ring, and the weight is ``table[state]`` (QTIP, arXiv 2406.11235). A first pass over
the weights beside both ends finds the ``L - K`` bits at which the ring is closed, and a second one the best path that
begins and ends with these.

numba compiles it for a CPU: with torch's operators it took fifty times as long.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qra_bo.finetune.threads import ANY_ORDER, compiled

RUN_UP = 64
"""Weights on each side of where a ring is closed: trellises of 16 bits err 1 % more with half of them, and half a
percent less with 96."""
TILE = 128
"""Stems of each choice that are followed for every code while they are in the first cache."""
LEAST_WEIGHT = 1e-6
"""Of a padded weight, as costs are in units of weights."""


def ring_states(targets: Tensor, weights: Tensor, table: Tensor, bits: int) -> Tensor:
    """Return the states, ``rings x n`` (int32), of rings of ``n`` numbers; all tensors are on the host. The last ``K``
    bits of a state are its code.

    Args:
        targets: Numbers, ``rings x n`` in fp32.
        weights: How often the squared error of each counts, likewise; at least ``LEAST_WEIGHT``.
        table: Values of the ``2^L`` states, fp32.
        bits: ``K``.
    """
    states = torch.empty(targets.shape, dtype=torch.int32)
    arrays = [tensor.contiguous().numpy() for tensor in (targets, weights.clamp_min(LEAST_WEIGHT))]
    _compiled(len(table).bit_length() - 1, bits)(*arrays, table.numpy(), states.numpy())
    return states


@cache
def _compiled(state_bits: int, code_bits: int) -> Any:
    """Return the compiled function ``(targets, weights, table, states)``, which fills ``states``; it needs no lock of
    the interpreter."""
    fan, stems = 1 << code_bits, 1 << state_bits - code_bits
    runs = stems >> code_bits
    tile = min(TILE, runs)
    tiles = runs // tile

    # State ``(stem << K) | code`` follows stem ``choice * runs + run``, and its code leads to ``run * fan + code``. But
    # for one transposition of the stems every loop runs over vectors. Costs are in units of the weight of a step, as
    # there are fewer stems to rescale than states.

    def encode(targets: Any, weights: Any, table: Any, states: Any) -> None:
        rings, n = targets.shape
        levels = np.ascontiguousarray(table.reshape(fan, tiles, tile, fan).transpose(1, 3, 0, 2))
        costs, later = np.empty((fan, tiles, tile), np.float32), np.empty((fan, tiles, tile), np.float32)
        least = np.empty((fan, tile), np.float32)
        choices = np.empty((max(n, 2 * RUN_UP), tiles, fan, tile), np.uint8)
        for ring in range(rings):
            stem: Any = -1
            first, steps = n - RUN_UP, 2 * RUN_UP
            for closed in (False, True):
                costs[:] = np.float32(np.inf if closed else 0)
                if closed:
                    costs.reshape(stems)[stem] = 0
                for step in range(steps):
                    at = (first + step) % n
                    target, unit = targets[ring, at], weights[ring, at] / weights[ring, (at + 1) % n]
                    after = later.reshape(stems)
                    for part in range(tiles):
                        for code in range(fan):
                            for run in range(tile):
                                error, choice = levels[part, code, 0, run] - target, np.int32(0)
                                cost = costs[0, part, run] + error * error
                                for j in range(1, fan):
                                    error = levels[part, code, j, run] - target
                                    other = costs[j, part, run] + error * error
                                    choice = np.int32(j) if other < cost else choice
                                    cost = min(other, cost)
                                least[code, run] = cost
                                choices[step, part, code, run] = choice
                        for run in range(tile):
                            for code in range(fan):
                                after[(part * tile + run) * fan + code] = least[code, run] * unit
                    costs, later = later, costs
                if not closed:
                    stem = np.argmin(costs.reshape(stems))
                for step in range(steps - 1, -1 if closed else RUN_UP - 1, -1):
                    run, code = stem >> code_bits, stem & (fan - 1)
                    stem = np.int64(choices[step, run // tile, code, run % tile]) * runs + run
                    if closed:
                        states[ring, step] = stem << code_bits | code
                first, steps = 0, n

    return compiled(encode, ANY_ORDER)
