"""Real training steps of small random models, followed by the tracker: what the memory model is held to."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qra_bo.finetune.adapters.lora import adapter_parameters, attach
from qra_bo.finetune.data.records import TokenBlocks
from qra_bo.finetune.memory_probe import PeakTracker
from qra_bo.finetune.models.activations import use_checkpointing
from qra_bo.finetune.models.experts import Experts, unfuse
from qra_bo.finetune.models.load import use_fast_attention
from qra_bo.finetune.quantization.embeddings import pack_embeddings
from qra_bo.finetune.training.loop import TrainSettings, held_out
from qra_bo.finetune.training.loss import token_losses
from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW
from qra_bo.memory.activations import rounding_bytes
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel, TrainShape
from qra_bo.space import Allocation, DecoderSpec, SearchSpace, make_units
from qra_bo.space.decoder import spec_from_model, with_adapters
from tests.conformance.quantizer import quantize

DTYPES = {2: torch.bfloat16, 4: torch.float32}
BASE: dict[str, Any] = dict(hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
                            num_key_value_heads=2, head_dim=32, vocab_size=512, tie_word_embeddings=True,
                            pad_token_id=0, use_cache=False)


def config_of(family: str, **changes: Any) -> Any:
    values = {**BASE, **changes}
    if family == "gpt_neox":
        values["num_key_value_heads"] = values["num_attention_heads"]
    return AutoConfig.for_model(family, **values)


@dataclass(frozen=True)
class Step:
    """One measured step, and the evaluation of a batch after it; ``phases``: forward, backward, step."""

    spec: DecoderSpec
    space: SearchSpace
    base: int
    phases: tuple[int, int, int]
    evaluation: int

    @property
    def peak(self) -> int:
        return max(*self.phases, self.evaluation)


def run_step(config: Any, shape: TrainShape, formats: tuple[str, ...], ranks: tuple[int, ...],
             granularity: str = "layer", experts: str = "each", *, even: bool = False) -> Step:
    """Two optimiser steps of a real model under an allocation; the second is followed. Of a mixture all tokens go to
    the same experts, the worst case, unless they are routed ``even``ly."""
    dtype = DTYPES[shape.compute_dtype_bytes]
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        ids = torch.randint(1, config.vocab_size, (shape.batch, shape.length))
    positions = torch.arange(shape.length).remainder(7).expand(shape.batch, -1).clone() if shape.isolated else None
    model.requires_grad_(False)
    unfuse(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Experts) and not even:
            model.get_submodule(f"{name.removesuffix('.experts')}.gate").weight.zero_()
    use_fast_attention(model, torch.device("cpu"), dtype)
    spec = with_adapters(spec_from_model(model), experts)
    pack_embeddings(model, shape.embeddings, dtype, torch.device("cpu"))
    units = make_units(spec, granularity)
    ladder = sorted({f: parse_format(f) for f in formats}.values(), key=lambda f: (f.bits, f.name))
    space = SearchSpace(units, tuple(ladder), tuple(sorted(set(ranks))))
    for unit, name in zip(units, formats, strict=True):
        for linear in unit.linears:
            fmt = parse_format(name)
            parent, _, child = linear.name.rpartition(".")
            dense = model.get_submodule(linear.name)
            setattr(model.get_submodule(parent), child, quantize(dense, fmt, dtype))
    if shape.checkpointing:
        use_checkpointing(model)
    attach(model, {m.name: r for u, r in zip(units, ranks, strict=True) for m in u.adapted}, 2.0, 0, dtype)
    pairs = adapter_parameters(model)
    groups = [({f"{m.name}.{k}": p for m in u.adapted for k, p in pairs[m.name].items()}, 1e-3)
              for u in units if u.adapted]
    optimizer = UnitwiseAdamW(groups, AdamWSettings(kind=shape.optimizer))
    model.train()

    def step(tracker: PeakTracker) -> tuple[int, int, int]:
        for _ in range(shape.accumulate):
            total, count = token_losses(model, ids, ids, shape.logits_chunk, positions)
            forward = tracker.peak_bytes
            tracker.reset_peak()
            total.backward()
            del total  # of the batch before nothing stays, as in training
            backward = tracker.peak_bytes
            tracker.reset_peak()
        optimizer.step(1.0, 1.0 / count)
        return forward, backward, tracker.peak_bytes

    step(PeakTracker())
    with PeakTracker() as tracker:
        tracker.track_existing(model)
        tracker.track(optimizer.tensors())
        base = tracker.live_bytes
        phases = step(tracker)
        tracker.reset_peak()
        text = np.ones((shape.batch, shape.length), dtype=np.int64)
        held_out(model, TokenBlocks(text, text, text if shape.isolated else None),
                 TrainSettings(shape.batch, logits_chunk=shape.logits_chunk or shape.tokens), torch.device("cpu"))
        evaluation = tracker.peak_bytes
    return Step(spec, space, base, phases, evaluation)


def predicted(step: Step, shape: TrainShape, formats: tuple[str, ...], ranks: tuple[int, ...]) -> int:
    """Peak bytes by the model, for the same allocation, less what allocators round up: the tracker counts exactly."""
    row = step.space.encode(Allocation(formats, ranks))
    total = int(MemoryModel(step.spec, shape).table(step.space).totals(row[None, :])[0])
    return total - rounding_bytes(step.spec, shape)
