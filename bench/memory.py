"""Predicted peaks against traced steps of 135 million to 70 billion parameters, and against real runs.

    python -m bench.memory [--tuples 26] [--seed 0] [--only NAME ...] [--real]

A tuple is an architecture, a mixed allocation, a batch, a length, checkpointing, a precision, an optimiser, a kind of
device and an evaluation batch, drawn from a seed. Each is predicted by the memory model, traced on meta tensors
(``qra_bo.finetune.tracing.trace``). Real rows train on this machine's CPU:
``tiny`` always, SmolLM2-135M with ``--real``.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.architectures import spec_of
from bench.report import RESULTS, Target, publish
from qra_bo.memory.allowance import Allowance
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel, TrainShape
from qra_bo.memory.optimizers import OPTIMIZERS
from qra_bo.space import Allocation, DecoderSpec, Ladder, SearchSpace, make_units

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("SmolLM2-135M", "Qwen3-0.6B", "Gemma-2B", "Llama-3.2-3B", "Pythia-6.9B", "Mistral-7B", "Qwen2.5-7B",
                 "Llama-2-70B")
FORMATS = ("hqq2", "hqq3", "nf4", "int8")
RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
GRANULARITIES = ("layer", "layer", "block", "fused", "module")
UNDER, OVER, REAL_OVER = -0.005, 0.03, 0.05
WITNESSED = 100 * 10**6
"""Least growth, in bytes, that the resident set of a process can bear witness to."""
Row = dict[str, Any]


def draw(spec: DecoderSpec, rng: np.random.Generator) -> tuple[SearchSpace, Allocation, TrainShape]:
    """One tuple: a third uniform, the rest mixed unit by unit; at most 8,192 tokens a step or an evaluation's batch."""
    units = make_units(spec, str(rng.choice(GRANULARITIES)))
    space = SearchSpace(units, tuple(parse_format(f) for f in FORMATS), Ladder("ranks", RANKS))
    n = 1 if rng.random() < 1 / 3 else len(units)
    formats, ranks = rng.choice(FORMATS, n), rng.choice(RANKS, n)
    allocation = Allocation(tuple(map(str, np.resize(formats, len(units)))),
                            tuple(map(int, np.resize(ranks, len(units)))))
    length = int(rng.choice((64, 128, 256, 512, 1024, 2048)))
    batch = min(int(rng.choice((1, 2, 4, 8, 16))), 8192 // length)
    compute = int(rng.choice((2, 2, 4)))
    shape = TrainShape(batch, length, bool(rng.integers(2)), compute, stored_dtype_bytes=compute)
    return space, allocation, replace(shape, optimizer=str(rng.choice(OPTIMIZERS)),
                                      device=str(rng.choice(("cpu", "cuda"))),
                                      eval_batch=min(int(rng.choice((1, 4, 8))), 8192 // length))


def traced_rows(name: str, count: int, seed: int) -> list[Row]:
    """``count`` tuples of one architecture, predicted and traced."""
    from qra_bo.finetune.tracing.trace import StepTracer

    spec, rows = spec_of(name), []
    tracer = StepTracer(spec)
    rng = np.random.default_rng([seed, *name.encode()])
    for _ in range(count):
        space, allocation, shape = draw(spec, rng)
        memory = MemoryModel(spec, shape, allowance=Allowance(0, 0))  # no allocator stands behind a trace
        start = time.process_time()
        traced = tracer.trace(space, allocation, shape)
        seconds = time.process_time() - start
        predicted = int(memory.table(space).totals(space.encode(allocation)[None, :])[0])
        rows.append({
            "what": name, "kind": "traced", "units": len(space.units), "mixed": len(set(allocation.formats)) > 1,
            "bits": round(average_bits(space, allocation), 3), "rank": round(statistics.fmean(allocation.ranks), 2),
            "batch": shape.batch, "length": shape.length, "checkpointing": shape.checkpointing,
            "compute_bytes": shape.compute_dtype_bytes, "optimizer": shape.optimizer, "device": shape.device,
            "eval_batch": shape.eval_batch, "phase": memory.phase_breakdown(space, allocation)[0],
            "traced_phase": traced.phase, "traced_bytes": traced.peak, "predicted_bytes": predicted,
            "error": predicted / traced.peak - 1, "cpu_seconds": seconds})
        print(f"{name}: {rows[-1]['error']:+.3%} {shape}", file=sys.stderr, flush=True)
    return rows


def all_traced(names: Sequence[str], count: int, seed: int, jobs: int) -> list[Row]:
    """Rows of all architectures, in their order; the largest start first."""
    order = sorted(names, key=lambda name: -spec_of(name).n_layers)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {name: pool.submit(traced_rows, name, count, seed) for name in order}
        return [row for name in names for row in futures[name].result()]


def average_bits(space: SearchSpace, allocation: Allocation) -> float:
    """Bits a weight of the linears."""
    numel = [unit.numel for unit in space.units]
    bits = [parse_format(f).bits for f in allocation.formats]
    return float(np.average(bits, weights=numel))


def real_rows(model: str) -> list[Row]:
    """Real training steps of ``model`` on this CPU, in a process of their own."""
    # From 64 KiB up every storage is a mapping of its own, which goes back to the kernel when it dies: only so does the
    # resident set follow what is alive.
    done = subprocess.run([sys.executable, "-m", "bench.memory_real", model], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}, check=False)
    if done.returncode:
        raise SystemExit(f"the real runs of {model!r} failed:\n{done.stderr[-4000:]}")
    rows: list[Row] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """For every architecture and for all: the distribution of errors."""
    names = [*dict.fromkeys(row["what"] for row in rows)]
    out = []
    for name in [*names, "all"]:
        own = [row for row in rows if name in ("all", row["what"])]
        errors = np.array([row["error"] for row in own])
        out.append({"what": name, "kind": "summary", "tuples": len(own), "least": float(errors.min()),
                    "median": float(np.median(errors)), "p95": float(np.quantile(errors, 0.95)),
                    "most": float(errors.max()), "inside": float(((errors >= 0) & (errors <= OVER)).mean()),
                    "cpu_seconds": sum(row["cpu_seconds"] for row in own) / len(own)})
    return out


def targets_of(traced: Sequence[Row], real: Sequence[Row]) -> list[Target]:
    errors = np.array([row["error"] for row in traced])
    inside = float(((errors >= 0) & (errors <= OVER)).mean())
    largest = float(max(row["cpu_seconds"] for row in traced))
    targets = [
        Target("tuples traced", ">= 200", float(len(traced)), len(traced) >= 200),
        Target("architectures", ">= 6", float(len({r["what"] for r in traced})), len({r["what"] for r in traced}) >= 6),
        Target("share of tuples predicted within [0 %, +3 %] of the trace", ">= 0.95", inside, inside >= 0.95),
        Target("least error of any tuple", ">= -0.005", float(errors.min()), bool(errors.min() >= UNDER)),
        Target("slowest trace, seconds of one core", "< 60", largest, largest < 60)]
    for row in real:
        name = row["what"]
        for key, limit in (("stored_difference", "0 bytes"), ("optimizer_difference", "0 bytes")):
            targets.append(Target(f"{name}: {key.replace('_', ' ')}", limit, float(row[key]), row[key] == 0))
        targets.append(Target(f"{name}: prediction over the measured peak", "0 to 0.05", row["error"],
                              0 <= row["error"] <= REAL_OVER))
        evaluation = row["phases"]["evaluation"]
        error = evaluation["predicted"] / evaluation["measured"] - 1
        targets.append(Target(f"{name}: prediction over the measured peak of an evaluation", "0 to 0.05", error,
                              0 <= error <= REAL_OVER))
        targets.append(Target(f"{name}: trace over the measured peak", "-0.01 to 0.01", row["trace_error"],
                              abs(row["trace_error"]) <= 0.01))
        growth = row["resident_set_growth"] / row["followed_growth"] - 1
        if row["followed_growth"] > WITNESSED:
            targets.append(Target(f"{name}: growth of the resident set over the followed one", "-0.05 to 0.05", growth,
                                  abs(growth) <= 0.05))
        targets.append(Target(f"{name}: torch.profiler's peak over the measured one", "-0.01 to 0.01",
                              row["profiler_error"], abs(row["profiler_error"]) <= 0.01))
    targets.append(Target("12 random-weight runs of Llama-7B's shape on a GPU, error of the reserved peak",
                          "0 to 0.05", None, False, "no GPU at hand; where there is one, make test-gpu measures it"))
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuples", type=int, default=26, help="tuples of every architecture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes that trace")
    parser.add_argument("--real", action="store_true", help="SmolLM2-135M too")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    args = parser.parse_args()
    traced = all_traced(args.only, args.tuples, args.seed, args.jobs)
    real = [row for model in ("tiny", *(("smollm2_135m",) if args.real else ())) for row in real_rows(model)]
    columns = ("what", "tuples", "least", "median", "p95", "most", "inside", "cpu_seconds")
    shown = summary(traced)
    publish("memory", targets_of(traced, real), [*shown, *real, *traced], columns, printed=len(shown),
            threads=1, folder=args.out)


if __name__ == "__main__":
    main()
