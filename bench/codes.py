"""Time of choosing codes on this CPU, and its floor: multiply-adds at the measured rate of products, steps of trellis
codes at the measured rate of additions and comparisons in the first cache.

    python -m bench.codes [--formats t2 t3 nf4 int4-g64] [--width 576] [--height 576]

One matrix of random weights and correlated inputs, one thread, in CPU seconds, so that other work on the machine counts
little. Printed, not kept.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from qra_bo.finetune.quantization.base import LevelBackend, RingBackend, backend_of
from qra_bo.finetune.quantization.gptq import compensated_codes
from qra_bo.finetune.quantization.moments import Inputs
from qra_bo.finetune.quantization.rings import STATE_BITS, rotated_moments
from qra_bo.finetune.quantization.viterbi import RUN_UP
from qra_bo.finetune.threads import ANY_ORDER
from qra_bo.memory.formats import parse_format, ring_length
from qra_bo.space import StorageFormat

STEPS = 4
"""Vector operations of a state and weight: a difference, its square added, a comparison and its choice."""
VECTOR = 1 << STATE_BITS
ROUNDS = 1000


@numba.njit(fastmath={*ANY_ORDER})
def additions_and_comparisons(x: Any, y: Any) -> None:
    """Keep the lesser of ``x`` and ``y`` plus a number, many times."""
    for turn in range(ROUNDS):
        for i in range(len(x)):
            x[i] = min(x[i], y[i] + np.float32(turn))


def seconds(action: Callable[[], Any], least: float = 0.2) -> float:
    """Return the CPU seconds of one call, repeated for at least so long after a first one."""
    action()
    calls, start = 0, time.process_time()
    while (spent := time.process_time() - start) < least:
        action()
        calls += 1
    return spent / calls


def rates() -> dict[str, float]:
    """Return a second's multiply-adds of products in fp32, and its additions and comparisons of vectors."""
    a, b = torch.randn(512, 576), torch.randn(576, 1536)
    found = {"float32": 512 * 576 * 1536 / seconds(partial(torch.matmul, a, b))}
    x, y = (np.zeros(VECTOR, np.float32) for _ in range(2))
    found["vector"] = 2 * VECTOR * ROUNDS / seconds(lambda: additions_and_comparisons(x, y))
    return found


def report(what: str, spent: float, floor: float) -> None:
    """Print one row."""
    print(f"{what}: {spent:.4f} s, floor {floor:.4f} s, ratio {spent / floor:.1f}", flush=True)


def by_levels(backend: LevelBackend, weight: Tensor, fmt: StorageFormat, inputs: Inputs) -> None:
    """Choose the codes of one matrix in a format whose codes are levels of a grid."""
    state = backend.pack_for_inputs(weight, fmt, weight.device, inputs.importance)
    grid = backend.grid(state, fmt, (weight.shape[0], weight.shape[1]))
    backend.recoded(state, fmt, compensated_codes([(weight, grid)], inputs)[0])


def main() -> None:
    """Print the rates, and seconds, floor and ratio of every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["t2", "t3", "nf4", "int4-g64"])
    parser.add_argument("--width", type=int, default=576, help="inputs")
    parser.add_argument("--height", type=int, default=576, help="outputs")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    n, rows = given.width, given.height
    rate = rates()
    print(", ".join(f"{name} {value / 1e9:.1f} G/s" for name, value in rate.items()))
    inputs = torch.randn(10 * n, n) @ (torch.eye(n) + 0.3 * torch.randn(n, n) / n ** 0.5)
    weight, moments = torch.randn(rows, n) / n ** 0.5, inputs.T @ inputs
    report("factors", seconds(lambda: Inputs.of(moments)), n**3 / 3 / rate["float32"])
    plain, turned = Inputs.of(moments), Inputs.of(rotated_moments(moments))
    for fmt in map(parse_format, given.formats):
        floor = rows * n**2 / 2 / rate["float32"]
        if isinstance(backend := backend_of(fmt), RingBackend):
            around = 1 + 2 * RUN_UP / ring_length(rows)
            floor += rows * n * around * STEPS * (1 << STATE_BITS) / rate["vector"]
            spent = seconds(partial(backend.compensated, weight, fmt, turned))
            report(fmt.name, spent, floor)
        elif isinstance(backend, LevelBackend):
            report(fmt.name, seconds(partial(by_levels, backend, weight, fmt, plain)), floor)


if __name__ == "__main__":
    main()
