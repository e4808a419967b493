"""Time of a training step in every format, against PEFT and bitsandbytes alone."""

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bench.steps import real_tokens, replace_linears, timed
from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.finetune.adapters.lora import detach
from qra_bo.finetune.data.load import load_data
from qra_bo.finetune.data.records import batches
from qra_bo.finetune.models.activations import use_checkpointing
from qra_bo.finetune.models.load import cast_parameters, load_base
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.training.loop import train_step
from qra_bo.space import StorageFormat, uniform
from qra_bo.space.allocation import peft_patterns
from qra_bo.utils.device import resolve_dtype
from scripts.gpu_hour.stage import RATE, Stage

RANK = 16
LADDER = ("bits=[2,3,4,5,6,8,16]", "quantizer.formats.4=[nf4,hqq4]", "quantizer.formats.8=[int8,hqq8]")


def numbers(stage: Stage) -> tuple[int, int]:
    """Return how many steps come first, untimed, and how many are timed."""
    return (1, 1) if stage.tiny else (2, 5)


def configurations(stage: Stage) -> Iterator[RunConfig]:
    """Yield a small batch, and long sequences with checkpointing."""
    for batch, length, checkpointing in ((2, 16, False), (1, 32, True)) if stage.tiny else \
            ((4, 128, False), (4, 512, True)):
        yield stage.config(length, *LADDER, f"train.batch={batch}",
                           f"train.checkpointing={str(checkpointing).lower()}")


def steps(stage: Stage) -> Iterator[dict[str, Any]]:
    """Time optimiser steps of rank 16 in every format of the ladder, and plain QLoRA on NF4."""
    for config in configurations(stage):
        shape = {"batch": config.train.batch, "length": config.train.length,
                 "checkpointing": config.train.checkpointing}
        oracle = stage.oracle(config)
        order = batches(len(oracle.data.train), config.train.step_sequences, sum(numbers(stage)), 0)
        tokens = statistics.mean(real_tokens(oracle.data.train.labels[rows]) for rows in order)
        for fmt in oracle.formats:
            yield {"what": f"qra_bo, {fmt.name}", **shape, **rates(own_steps(stage, oracle, fmt, order), tokens)}
            stage.release()
        del oracle
        stage.release()
        yield {"what": "PEFT QLoRA, nf4", **shape, **rates(plain_qlora(stage, config), tokens)}
        stage.release()


def own_steps(stage: Stage, oracle: FinetuneOracle, fmt: StorageFormat, order: np.ndarray) -> list[float]:
    """Return the seconds of the timed steps with all units in ``fmt``; ``order`` is steps x sequences of a step."""
    allocation, train = uniform(len(oracle.units), fmt.name, RANK), oracle.data.train
    oracle.build(allocation, 0)
    optimizer = oracle.optimizer(allocation, RATE)

    def step(number: int) -> None:
        train_step(oracle.model, optimizer, train, order, number, oracle.settings.train, stage.device)

    try:
        with oracle.bank.only_packed():
            return [timed(stage.device, lambda n=n: step(n)) for n in range(len(order))][numbers(stage)[0]:]
    finally:
        detach(oracle.model)


def rates(found: list[float], tokens: float) -> dict[str, Any]:
    """Return the median seconds of a step, and tokens a second."""
    median = statistics.median(found)
    return {"step_seconds": median, "tokens_per_second": tokens / median}


def plain_qlora(stage: Stage, config: RunConfig) -> list[float]:
    """Return the seconds of the timed steps of PEFT over bitsandbytes' layers with AdamW, as its users write it."""
    from peft import LoraConfig, get_peft_model

    dtype = getattr(torch, resolve_dtype(config.dtype, stage.device.type))
    model, tokenizer = load_base(config.model)
    cast_parameters(model, dtype)
    data = load_data(config.data, tokenizer, config.train.length).train
    units = make_space(config, make_spec(config)).units
    replace_linears(model, units, uniform(len(units), "nf4", RANK), dtype, stage.device)
    model = model.to(stage.device)
    model.config.use_cache = False
    model.is_loaded_in_4bit = True
    if config.train.checkpointing:
        use_checkpointing(model)
        model.enable_input_require_grads()
    ranks = {linear.name: RANK for unit in units for linear in unit.linears}
    model = get_peft_model(model, LoraConfig(**peft_patterns(ranks, config.adapter.alpha_over_rank), bias="none",
                                             lora_dropout=0.0, task_type="CAUSAL_LM")).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    order = batches(len(data.input_ids), config.train.step_sequences, sum(numbers(stage)), 0)

    def step(rows: Any) -> None:
        ids, labels = (torch.from_numpy(part[rows]).to(stage.device).long() for part in (data.input_ids, data.labels))
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return [timed(stage.device, lambda rows=rows: step(rows)) for rows in order][numbers(stage)[0]:]
