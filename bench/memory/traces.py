"""Predicted peaks against traced steps of 135 million to 70 billion parameters, and against real runs.

    python -m bench.memory [--tuples 26] [--real]

A tuple is an architecture, a mixed allocation, a batch, a length, checkpointing, a precision, an optimiser and a kind
of device, drawn from a seed. Each is predicted by the memory model and traced on meta tensors (``bench.memory.trace``).
Real rows train on this machine's CPU: ``tiny`` always, SmolLM2-135M with ``--real``.
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

from bench.memory.tuples import bits_of, drawn, space_of, spec_of, total
from bench.report import RESULTS, Target, publish
from qra_bo.memory.model import Allowance, MemoryModel, TrainShape
from qra_bo.memory.optimizers import OPTIMIZERS
from qra_bo.space import Allocation, DecoderSpec, SearchSpace

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("SmolLM2-135M", "Qwen3-0.6B", "Gemma-2B", "Llama-3.2-3B", "Pythia-6.9B", "Mistral-7B", "Qwen2.5-7B",
                 "Llama-2-70B")
GRANULARITIES = ("layer", "layer", "block", "fused", "module")
SEED = 0
UNDER, OVER, REAL_OVER = -0.005, 0.03, 0.05
WITNESSED = 100 * 10**6
"""Least growth, in bytes, that the resident set of a process can bear witness to."""
Row = dict[str, Any]


def draw(spec: DecoderSpec, rng: np.random.Generator) -> tuple[SearchSpace, Allocation, TrainShape]:
    """Draw one tuple: at most 8,192 tokens a batch."""
    space = space_of(spec, str(rng.choice(GRANULARITIES)))
    allocation, length = drawn(space, rng), int(rng.choice((64, 128, 256, 512, 1024, 2048)))
    batch = min(int(rng.choice((1, 2, 4, 8, 16))), 8192 // length)
    compute = int(rng.choice((2, 2, 4)))
    shape = TrainShape(batch, length, bool(rng.integers(2)), compute)
    return space, allocation, replace(shape, optimizer=str(rng.choice(OPTIMIZERS)),
                                      device=str(rng.choice(("cpu", "cuda"))))


def traced_rows(name: str, count: int) -> list[Row]:
    """``count`` tuples of one architecture, predicted and traced."""
    from bench.memory.trace import StepTracer

    spec, rows = spec_of(name), []
    tracer, rng = StepTracer(spec), np.random.default_rng([SEED, *name.encode()])
    for _ in range(count):
        space, allocation, shape = draw(spec, rng)
        memory = MemoryModel(spec, shape, allowance=Allowance(0, 0))  # no allocator stands behind a trace
        start = time.process_time()
        traced = tracer.trace(space, allocation, shape)
        seconds, predicted = time.process_time() - start, total(memory, space, allocation)
        rows.append({
            "what": name, "kind": "traced", "units": len(space.units), "mixed": len(set(allocation.formats)) > 1,
            "bits": bits_of(space, allocation), "rank": round(statistics.fmean(allocation.ranks), 2),
            "batch": shape.batch, "length": shape.length, "checkpointing": shape.checkpointing,
            "compute_bytes": shape.compute_dtype_bytes, "optimizer": shape.optimizer, "device": shape.device,
            "phase": memory.phase_breakdown(space, allocation)[0],
            "traced_phase": traced.phase, "traced_bytes": traced.peak, "predicted_bytes": predicted,
            "error": predicted / traced.peak - 1, "cpu_seconds": seconds})
        print(f"{name}: {rows[-1]['error']:+.3%} {shape}", file=sys.stderr, flush=True)
    return rows


def all_traced(count: int) -> list[Row]:
    """Rows of all architectures, in their order; the largest start first."""
    order = sorted(ARCHITECTURES, key=lambda name: -spec_of(name).n_layers)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {name: pool.submit(traced_rows, name, count) for name in order}
        return [row for name in ARCHITECTURES for row in futures[name].result()]


def real_rows(model: str) -> list[Row]:
    """Real training steps of ``model`` on this CPU, in a process of their own."""
    # From 64 KiB up every storage is a mapping of its own, which goes back to the kernel when it dies: only so does the
    # resident set follow what is alive.
    done = subprocess.run([sys.executable, "-m", "bench.memory.real", model], cwd=ROOT, capture_output=True, text=True,
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
    """What traces and real runs ask of the prediction."""
    errors = np.array([row["error"] for row in traced])
    inside = float(((errors >= 0) & (errors <= OVER)).mean())
    largest, families = float(max(row["cpu_seconds"] for row in traced)), len({r["what"] for r in traced})
    targets = [
        Target("tuples traced", ">= 200", float(len(traced)), len(traced) >= 200),
        Target("architectures", ">= 6", float(families), families >= 6),
        Target("share of tuples predicted within [0 %, +3 %] of the trace", ">= 0.95", inside, inside >= 0.95),
        Target("least error of any tuple", ">= -0.005", float(errors.min()), bool(errors.min() >= UNDER)),
        Target("slowest trace, seconds of one core", "< 60", largest, largest < 60)]
    for row in real:
        asked: list[tuple[str, float, float, float]] = [
            ("stored difference", row["stored_difference"], 0, 0),
            ("optimizer difference", row["optimizer_difference"], 0, 0),
            ("prediction over the measured peak", row["error"], 0, REAL_OVER),
            ("trace over the measured peak", row["trace_error"], -0.01, 0.01)]
        if row["followed_growth"] > WITNESSED:
            asked.append(("growth of the resident set over the followed one",
                          row["resident_set_growth"] / row["followed_growth"] - 1, -0.05, 0.05))
        targets += [Target(f"{row['what']}: {what}", f"{least:g} to {most:g}", value, least <= value <= most)
                    for what, value, least, most in asked]
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuples", type=int, default=26, help="tuples of every architecture")
    parser.add_argument("--real", action="store_true", help="SmolLM2-135M too")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    args = parser.parse_args()
    traced = all_traced(args.tuples)
    real = [row for model in ("tiny", *(("smollm2_135m",) if args.real else ())) for row in real_rows(model)]
    columns = ("what", "tuples", "least", "median", "p95", "most", "inside", "cpu_seconds")
    shown = summary(traced)
    publish("memory", targets_of(traced, real), [*shown, *real, *traced], columns, shown=shown, threads=1,
            folder=args.out)
