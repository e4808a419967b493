"""Predicted peaks against the memory that a GPU's allocator reserves, for random-weight decoders of Llama-7B's shape.

    python -m bench.memory.gpu

At least twelve runs with mixed bits and ranks, over batches, lengths, checkpointing and optimisers.
A card too small for 32 layers gets as many as it holds. Weights are drawn and packed matrix by matrix, so that no dense
model is ever there. Everything but the text and the weights is what a real run uses. Without a GPU it writes
down that nothing was measured.
"""

import argparse
import gc
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.memory.tuples import bits_of, drawn, space_of, total
from bench.report import RESULTS, Target, publish
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import PPM, Allowance, MemoryModel, TrainShape
from qra_bo.space import Allocation, CostTable, DecoderSpec, SearchSpace
from qra_bo.space.decoder import spec_from_numbers
from qra_bo.utils.device import expand_segments

LEAST_RUNS, OVER, UNDER = 12, 0.06, -0.005
SHAPES = (TrainShape(1, 512, True), TrainShape(4, 256), TrainShape(2, 512, True, optimizer="adamw_8bit"),
          TrainShape(8, 128, optimizer="adamw_8bit"), TrainShape(1, 1024, True),
          TrainShape(4, 512, True, optimizer="adamw_8bit"))
Row = dict[str, Any]
FREE_SHARE = 0.85
"""Of the free memory that the largest run may be predicted to need."""


def llama(n_layers: int) -> DecoderSpec:
    """Llama-2-7B with another number of layers."""
    return spec_from_numbers(f"llama-7b-shape-{n_layers}", "llama", n_layers=n_layers, hidden_size=4096,
                             intermediate_size=11008, n_heads=32, n_kv_heads=32, head_dim=128, vocab_size=32000,
                             tied=False)


def tuples(spec: DecoderSpec, shapes: Sequence[TrainShape]) -> list[tuple[SearchSpace, Allocation, TrainShape]]:
    """Two mixed allocations for every shape."""
    space, rng = space_of(spec), np.random.default_rng(0)
    return [(space, drawn(space, rng, 0.0), shape) for shape in shapes for _ in range(2)]


def random_model(spec: DecoderSpec, space: SearchSpace, allocation: Allocation, shape: TrainShape, device: Any) -> Any:
    """A decoder of ``spec`` with random weights, each matrix packed as the allocation says, on ``device``."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from bench.memory.trace import DTYPES, config_from_spec
    from qra_bo.finetune.models.activations import use_checkpointing
    from qra_bo.finetune.models.load import use_fast_attention
    from qra_bo.finetune.quantization.base import backend_of

    dtype = DTYPES[shape.compute_dtype_bytes]
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config_from_spec(spec), dtype=dtype)
    generator = torch.Generator(device).manual_seed(0)

    def drawn(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=device).normal_(0, 0.02, generator=generator)

    for unit, name in zip(space.units, allocation.formats, strict=True):
        fmt = parse_format(name)
        for m in unit.linears:
            size = (m.out_features, m.in_features)
            state = backend_of(fmt).pack(drawn(*size), fmt, device)
            model.set_submodule(m.name, backend_of(fmt).build(state, fmt, size, None, dtype))
    for module in model.modules():
        for key, p in module.named_parameters(recurse=False):
            if p.is_meta:
                value = drawn(*p.shape) if p.ndim == 2 else torch.ones(p.shape, dtype=dtype, device=device)
                setattr(module, key, torch.nn.Parameter(value, requires_grad=False))
        for key, b in module.named_buffers(recurse=False):
            setattr(module, key, b.to(device))
    model.tie_weights()
    use_fast_attention(model, device, dtype)
    if shape.checkpointing:
        use_checkpointing(model)
    return model


def measure(spec: DecoderSpec, space: SearchSpace, allocation: Allocation, shape: TrainShape, device: Any) -> Any:
    """Peaks by phase (``PhasePeak``) of three real training steps and one batch of an evaluation on ``device``."""
    import torch

    from bench.memory.trace import DTYPES
    from qra_bo.finetune.adapters.lora import adapter_parameters, attach
    from qra_bo.finetune.data.records import TokenBlocks
    from qra_bo.finetune.memory_probe import MemoryProbe
    from qra_bo.finetune.training.loop import TrainSettings, held_out, train_step
    from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = random_model(spec, space, allocation, shape, device)
    ranks = dict(zip((u.name for u in space.units), allocation.ranks, strict=True))
    unit_of = {m.name: u.name for u in space.units for m in u.linears}
    attach(model, {m: ranks[u] for m, u in unit_of.items()}, 2.0, 0, DTYPES[shape.compute_dtype_bytes])
    settings = TrainSettings(shape.batch, shape.accumulate, logits_chunk=shape.logits_chunk,
                             checkpointing=shape.checkpointing, optimizer=AdamWSettings(kind=shape.optimizer))
    groups = settings.unit_groups(adapter_parameters(model), unit_of, ranks, 2e-3)
    optimizer = UnitwiseAdamW(groups, settings.optimizer)
    nothing_kept_dense = SimpleNamespace(only_packed=nullcontext, device=device, model=model)
    probe = MemoryProbe(optimizer, nothing_kept_dense, "peak")  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    text = rng.integers(0, spec.vocab_size, (settings.step_sequences, shape.length))
    blocks = TokenBlocks(text, text)
    order = np.tile(np.arange(settings.step_sequences), (3, 1))
    for step in range(3):
        with probe.watch(step) as mark:
            train_step(model, optimizer, blocks, order, step, settings, device, mark)
    held_out(model, blocks.take(shape.batch), settings, device, probe.evaluation)
    return probe


def run(spec: DecoderSpec, shapes: Sequence[TrainShape], device: Any) -> list[Row]:
    """A row for every tuple: predicted and measured, by phase."""
    import torch

    rows = []
    for space, allocation, shape in tuples(spec, shapes):
        memory = MemoryModel(spec, shape)
        probe = measure(spec, space, allocation, shape, device)
        peaks, measured = probe.peaks, int(probe.bytes)
        del probe
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        row = space.encode(allocation)[None, :]
        phases = {p.name: {"predicted": int(CostTable((p,)).totals(row)[0]), **peaks[p.name]}
                  for p in memory.phases(space)}
        alive = total(replace(memory, allowance=Allowance(0, 0)), space, allocation)
        twice = total(replace(memory, allowance=Allowance(0, PPM)), space, allocation)
        predicted = total(memory, space, allocation)
        rows.append({"what": spec.name, "bits": bits_of(space, allocation),
                     "rank": round(float(np.mean(allocation.ranks)), 2), "batch": shape.batch, "length": shape.length,
                     "checkpointing": shape.checkpointing, "optimizer": shape.optimizer,
                     "predicted_bytes": predicted, "reserved_bytes": measured, "error": predicted / measured - 1,
                     "alive_bytes": alive, "transient_bytes": twice - alive, "phases": phases})
    return rows


def fitting(shapes: Sequence[TrainShape], free: int) -> DecoderSpec:
    """As many of 32 layers as every tuple fits with."""
    for n_layers in range(32, 0, -1):
        spec = llama(n_layers)
        if max(total(MemoryModel(spec, shape), space, a) for space, a, shape in tuples(spec, shapes)) \
                <= FREE_SHARE * free:
            return spec
    raise SystemExit("this card does not hold a single layer of Llama-7B in training")


def main(arguments: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    args = parser.parse_args(arguments)
    expand_segments()  # as in workers, for which predictions are made; before torch is imported
    import torch

    what = "runs of Llama-7B's shape on a GPU: prediction over the reserved peak"
    columns = ("what", "bits", "rank", "batch", "length", "checkpointing", "optimizer", "predicted_bytes",
               "reserved_bytes", "error")
    if not torch.cuda.is_available():
        return publish("memory_gpu", [Target(what, f"0 to {OVER}", None, False, "no GPU at hand")], [], columns,
                       folder=args.out)
    device = torch.device("cuda", torch.cuda.current_device())
    shapes = [replace(shape, device="cuda") for shape in SHAPES]
    spec = fitting(shapes, torch.cuda.mem_get_info(device)[0])
    rows = run(spec, shapes, device)
    errors = [row["error"] for row in rows]
    targets = [Target("runs", f">= {LEAST_RUNS}", float(len(rows)), len(rows) >= LEAST_RUNS),
               Target(f"layers of Llama-7B on {torch.cuda.get_device_name(device)}", "32", float(spec.n_layers),
                      spec.n_layers == 32),
               Target(f"least of {what}", "0", min(errors), min(errors) >= 0),
               Target(f"most of {what}", f"{OVER}", max(errors), max(errors) <= OVER)]
    return publish("memory_gpu", targets, rows, columns, folder=args.out)


if __name__ == "__main__":
    main()
