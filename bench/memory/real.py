"""Memory of real training steps on this CPU, measured three ways; a JSON line for every allocation.

    python -m bench.memory.real MODEL

Of each allocation a step and a batch of the evaluation are followed storage by storage, phase by phase, and the next
step by the kernel: the growth of the process's resident set at its highest. Stored and optimiser bytes are counted on
the real storages.
"""

import ctypes
import gc
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.config import load_config
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel
from qra_bo.pipeline.finetune_oracle import make_finetune
from qra_bo.pipeline.pricing import make_memory
from qra_bo.space import Allocation, CostTable, SearchSpace

FORMATS = ("nf4", "nf4-nodq", "int8", "hqq2", "hqq3", "fp16")
RANKS = (4, 16)
RATE = 2e-3
Row = dict[str, Any]


def allocations(n_units: int) -> dict[str, tuple[Allocation, str]]:
    """One uniform allocation of every backend and format and a mixed one from a fixed seed, under AdamW; and one with
    moments of 8 bits. By name, with the optimiser."""
    rng = np.random.default_rng(0)
    out = {f"{fmt}, rank {rank}": (Allocation((fmt,) * n_units, (rank,) * n_units), "adamw")
           for fmt, rank in zip(FORMATS, RANKS * 3, strict=True)}
    out["mixed"] = (Allocation(tuple(map(str, rng.choice(FORMATS, n_units))),
                               tuple(map(int, rng.choice(RANKS, n_units)))), "adamw")
    out["nf4, rank 16, adamw_8bit"] = (Allocation(("nf4",) * n_units, (16,) * n_units), "adamw_8bit")
    return out


def resident_bytes(key: str) -> int:
    """Return the process's resident set now (``VmRSS``) or at its highest (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def begin_peak() -> int:
    """Begin the high-water mark of the resident set anew, and return its size now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what follows would use pages that were kept from before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_bytes("VmRSS")


def built(oracle: Any, allocation: Allocation) -> tuple[Any, Callable[..., None]]:
    """The optimiser of a freshly built allocation, and what runs its step of some number, told what marks phases."""
    from qra_bo.finetune.data.records import batches
    from qra_bo.finetune.training.loop import train_step

    oracle.build(allocation, 0)
    optimizer, train, settings = oracle.optimizer(allocation, RATE), oracle.data.train, oracle.settings.train
    order = batches(len(train.input_ids), settings.step_sequences, 3, 0)

    def step(number: int, mark: Callable[[str], None] = lambda phase: None) -> None:
        train_step(oracle.model, optimizer, train, order, number, settings, oracle.device, mark)

    return optimizer, step


def measure(oracle: Any, memory: MemoryModel, tracer: Any, name: str, allocation: Allocation) -> Row:
    """Everything of one allocation under the optimiser of ``memory``."""
    from qra_bo.finetune.adapters.lora import detach
    from qra_bo.finetune.memory_probe import PeakTracker
    from qra_bo.finetune.quantization.base import storage_bytes
    from qra_bo.finetune.training.loop import held_out

    formats = sorted({f: parse_format(f) for f in allocation.formats}.values(), key=lambda f: (f.bits, f.name))
    space = SearchSpace(oracle.units, tuple(formats), tuple(sorted(set(allocation.ranks))))
    parts = memory.breakdown(space, allocation)
    optimizer, step = built(oracle, allocation)
    with oracle.bank.only_packed():
        step(0)
        with PeakTracker() as tracker:
            tracker.track_existing(oracle.model)
            tracker.track(optimizer.tensors())
            resident = tracker.live_bytes
            phases = {"load": resident}

            def mark(phase: str) -> None:
                phases[phase] = tracker.peak_bytes
                tracker.reset_peak()

            step(1, mark)
            text = oracle.data.validation.take(memory.shape.batch)
            held_out(oracle.model, text, oracle.settings.train, oracle.device)
            mark("evaluation")
        before = begin_peak()
        step(2)
        grown = resident_bytes("VmHWM") - before
    working = {w.working.untyped_storage().data_ptr() for w, _ in optimizer.weights()}
    tables = {s[k].untyped_storage().data_ptr() for _, s in optimizer.weights() for k in s
              if k.startswith("qmap")}  # of 8-bit moments, shared by all
    state = storage_bytes([t for t in optimizer.tensors()
                           if t.untyped_storage().data_ptr() not in working | tables])
    stored = oracle.bank.stored_bytes(oracle.bank.current)
    traced = tracer.trace(space, allocation, memory.shape)
    detach(oracle.model)
    row = space.encode(allocation)[None, :]
    by_phase = {p.name: int(CostTable((p,)).totals(row)[0]) for p in memory.phases(space)}
    peak, predicted = max(phases.values()), sum(parts.values())
    trained = max(size for phase, size in phases.items() if phase != "evaluation")
    return {"what": f"{memory.spec.name}: {name}", "kind": "real", "measured_bytes": peak, "predicted_bytes": predicted,
            "error": predicted / peak - 1, "traced_bytes": traced.peak, "trace_error": traced.peak / peak - 1,
            "resident_set_growth": grown, "followed_growth": trained - resident,
            "phases": {phase: {"measured": size, "predicted": by_phase.get(phase, predicted)}
                       for phase, size in phases.items()},
            "stored_bytes": stored, "stored_difference": parts["weights"] + parts["quant_metadata"] - stored,
            "optimizer_bytes": state, "optimizer_difference": parts["optimizer"] - state}


def main() -> None:
    from bench.memory.trace import StepTracer

    config = load_config([f"+model={sys.argv[1]}", "device=cpu", "dtype=bfloat16", "quantizer.rounding=rtn"])
    with tempfile.TemporaryDirectory() as folder:
        oracle = make_finetune(config, Path(folder))
        memory = make_memory(config, oracle.bank.spec, "cpu")
        tracer = StepTracer(memory.spec)
        train = oracle.settings.train
        for name, (allocation, kind) in allocations(len(oracle.units)).items():
            settings = replace(train, optimizer=replace(train.optimizer, kind=kind))
            oracle.settings = replace(oracle.settings, train=settings)
            priced = replace(memory, shape=replace(memory.shape, optimizer=kind))
            print(json.dumps(measure(oracle, priced, tracer, name, allocation)), flush=True)


if __name__ == "__main__":
    main()
