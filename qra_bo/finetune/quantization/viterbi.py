"""States of rings by Viterbi's algorithm.

A ring is a closed sequence of ``n`` codes of ``K`` bits. The state of a weight is the window of the last ``L`` bits
that ends with its code, around the ring, and the weight is ``table[state]`` (QTIP, arXiv 2406.11235). A first pass,
with a run-up before the ring and after it, finds the states, and whether the ring closes: whether its first state
continues its last one. Where it does not, a second pass finds the best path that begins and ends with the ``L - K``
bits of the end.

numba compiles it for a CPU: with torch's operators it took fifty times as long.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qra_bo.finetune.threads import compiled

RUN_UP = 32
"""Weights before the ring and after it, about five times those of a state: paths have met within so many."""


def ring_states(targets: Tensor, weights: Tensor, table: Tensor, bits: int) -> Tensor:
    """Return the states, ``rings x n`` (int32), of rings of ``n`` numbers; all tensors are on the host. The last ``K``
    bits of a state are its code.

    Args:
        targets: Numbers, ``rings x n`` in fp32.
        weights: How often the squared error of each counts, likewise.
        table: Values of the ``2^L`` states, fp32.
        bits: ``K``.
    """
    states = torch.empty(targets.shape, dtype=torch.int32)
    arrays = [tensor.contiguous().numpy() for tensor in (targets, weights)]
    _compiled(len(table).bit_length() - 1, bits)(*arrays, table.numpy(), states.numpy())
    return states


@cache
def _compiled(state_bits: int, code_bits: int) -> Any:
    """Return the compiled function ``(targets, weights, table, states)``, which fills ``states``; it needs no lock of
    the interpreter."""
    fan, stems = 1 << code_bits, 1 << state_bits - code_bits
    runs, shift = stems >> code_bits, state_bits - code_bits

    # State ``(stem << K) | code`` lies at ``[code, stem]``, stem ``(run << K) | code`` of a choice at ``[code, run]``:
    # but for one transposition of the stems, every loop runs over vectors. Costs of states are compared as they are
    # computed, without the square of the target, which is common to all.

    def encode(targets: Any, weights: Any, table: Any, states: Any) -> None:
        rings, n = targets.shape
        levels = np.ascontiguousarray(table.reshape(stems, fan).T)
        best, least = np.empty(stems, np.float32), np.empty((fan, runs), np.float32)
        choice = np.empty((n + 2 * RUN_UP, fan, runs), np.uint8)
        for ring in range(rings):
            overlap, run_up = -1, RUN_UP  # of the ring's end, once it is known not to close by itself
            while True:
                best[:] = np.float32(0 if overlap < 0 else np.inf)
                if overlap >= 0:
                    best[overlap] = 0
                last = n + 2 * run_up - 1
                for t in range(last):
                    weight = weights[ring, (t - run_up) % n]
                    slope = np.float32(-2) * weight * targets[ring, (t - run_up) % n]
                    for code in range(fan):
                        for run in range(runs):
                            level, which = levels[code, run], np.int32(0)
                            value = best[run] + (slope + weight * level) * level
                            for j in range(1, fan):
                                level = levels[code, j * runs + run]
                                other = best[j * runs + run] + (slope + weight * level) * level
                                which = np.int32(j) if other < value else which
                                value = min(other, value)
                            least[code, run] = value
                            choice[t + 1, code, run] = which
                    for run in range(runs):
                        for code in range(fan):
                            best[run * fan + code] = least[code, run]
                weight = weights[ring, (last - run_up) % n]
                slope = np.float32(-2) * weight * targets[ring, (last - run_up) % n]
                state: Any = 0
                lowest = np.float32(np.inf)
                for code in range(fan):
                    for stem in range(stems):
                        ends = overlap < 0 or ((stem << code_bits) | code) & (stems - 1) == overlap
                        value = best[stem] + (slope + weight * levels[code, stem]) * levels[code, stem]
                        if ends and value < lowest:
                            state, lowest = (stem << code_bits) | code, value
                end = 0
                for t in range(last, run_up - 1, -1):
                    if t == n + run_up - 1:
                        end = state & (stems - 1)
                    if t < n + run_up:
                        states[ring, t - run_up] = state
                    stem = state >> code_bits
                    state = (np.int64(choice[t, stem & (fan - 1), stem >> code_bits]) << shift) | stem
                if overlap >= 0 or state & (stems - 1) == end:
                    break
                overlap, run_up = end, 0

    return compiled(encode, fastmath={"contract", "reassoc", "nsz"})
