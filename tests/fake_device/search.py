"""Every kind of device work of a search, on the fake device: ``python -m tests.fake_device.search ROUNDS``.

Every format is packed, unpacked and run forward in bf16; in every round a training is run with every backend. Their
formats, optimisers, types, checkpointing and isolation take turns, so that every two of these choices
meet. Models that were quantised on the host are moved to the device and run. Prints the number of trainings; a mismatch
of devices or types ends it with a traceback.
"""

from tests.fake_device.harness import DEVICE, fake_device  # noqa: I001 - registers the device before torch is used

import os
import sys
from typing import NamedTuple

import numpy as np
import torch

from qra_bo.finetune.data.records import TokenBlocks
from qra_bo.finetune.adapters.lora import adapter_parameters, attach, detach
from qra_bo.finetune.models.activations import use_checkpointing
from qra_bo.finetune.models.host_linear import keep_on_host
from qra_bo.finetune.models.load import use_fast_attention
from qra_bo.finetune.gradient_profile import measure_by_gradients
from qra_bo.finetune.profiling import measure_quantization_sensitivity, measure_rank_sensitivity
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.rounding import Rounding
from qra_bo.finetune.training.loop import TrainSettings, held_out, train_step
from qra_bo.finetune.training.loss import CalibrationText, token_losses
from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW
from qra_bo.memory.formats import parse_format
from qra_bo.memory.optimizers import OPTIMIZERS
from qra_bo.oracle.protocol import quiet
from qra_bo.space import make_units
from tests.finetune.models import tiny_llama

BACKENDS = (("nf4", "int8"), ("hqq3", "hqq2", "hqq6"), ("fp16",), ("sym3-g32", "int3-g64"))
"""Formats of each backend that take turns in training."""
MOVED = ("nf4", "int8", "nf4-nodq", "hqq3", "hqq6", "fp16", "sym4-g64", "int3-g64")
DTYPES = (torch.bfloat16, torch.float32)
LENGTH, BATCH = 8, 2
HOST = torch.device("cpu")
TEXT = np.zeros((4, LENGTH), dtype=np.int64)


class Case(NamedTuple):
    """One training."""

    fmt: str
    optimizer: str
    dtype: torch.dtype
    checkpointing: bool
    isolated: bool


def cases(rounds: int) -> list[Case]:
    """Return trainings whose choices of different kinds take turns, formats by their backend."""
    return [Case(names[i % len(names)], OPTIMIZERS[(i + b) % len(OPTIMIZERS)], DTYPES[(i + b // 2) % 2],
                 bool((i // 2 + b) % 2), bool((i + b * 3 // 2 + i // 4) % 2))
            for i in range(rounds) for b, names in enumerate(BACKENDS)]


def train(bank: LayerBank, case: Case) -> None:
    """Install, attach, train two accumulating steps, evaluate, detach."""
    units = make_units(bank.spec, "layer")
    formats = {linear.name: case.fmt for linear in bank.spec.linears}
    ranks = dict.fromkeys(formats, 2)
    use_checkpointing(bank.model, case.checkpointing)
    bank.install(formats)
    attach(bank.model, ranks, 2.0, 0, case.dtype)
    settings = TrainSettings(BATCH, 2, logits_chunk=8, optimizer=AdamWSettings(kind=case.optimizer))
    unit_of = {linear.name: unit.name for unit in units for linear in unit.linears}
    groups = settings.unit_groups(adapter_parameters(bank.model), unit_of, {unit.name: 2 for unit in units}, 2e-3)
    inner = UnitwiseAdamW(groups, settings.optimizer)
    order = np.tile(np.arange(settings.step_sequences), (2, 1))
    blocks = TokenBlocks(TEXT, TEXT, TEXT if case.isolated else None)
    for step in range(2):
        train_step(bank.model, inner, blocks, order, step, settings, DEVICE)
    held_out(bank.model, blocks, settings, DEVICE)
    assert {t.device.type for t in inner.state().values()} == {"cpu"}
    assert {p.device.type for p in bank.model.parameters()} == {DEVICE.type}
    detach(bank.model)


def move(fmt: str, dtype: torch.dtype) -> None:
    """Quantise a model on the host, then move it as trainers do, and train on it."""
    model, spec = tiny_llama(layers=1, dtype=dtype)
    use_fast_attention(model, DEVICE, dtype)
    bank = LayerBank(model, spec, (), dtype, HOST)
    formats = {linear.name: fmt for linear in spec.linears}
    bank.install(formats)
    attach(model, dict.fromkeys(formats, 2), 2.0, 0, dtype)
    model.to(DEVICE)
    ids = torch.from_numpy(TEXT).to(DEVICE)
    token_losses(model, ids, ids, 8)[0].backward()
    assert {t.device.type for name in formats for t in bank.state(name, fmt).values()} == {HOST.type}


def main(rounds: int) -> None:
    for dtype in DTYPES:
        every = rounds > 1 and dtype == torch.bfloat16  # else formats are one of each backend
        coded = [parse_format(name) for names in BACKENDS for name in (names if every else names[:1]) if name != "fp16"]
        with fake_device():
            model, spec = tiny_llama(layers=1, dtype=dtype)
            use_fast_attention(model, DEVICE, dtype)
            names = [linear.name for linear in spec.linears]
            keep_on_host(model, names)
            model.to(DEVICE)
            ids = torch.from_numpy(TEXT)
            text, one_batch = CalibrationText(ids, ids, BATCH, 8), CalibrationText(ids, ids, len(TEXT), 8)
            chosen = coded if rounds > 1 or dtype == torch.bfloat16 else []  # GPTQ takes half of the time
            rounding = Rounding(model, names, chosen, ids, DEVICE, None)
            bank = LayerBank(model, spec, (), dtype, DEVICE, rounding=rounding, dense_on_device=dtype == torch.bfloat16)
            bank.restore_dense()
            units = make_units(spec, "module")
            for measured in (text, one_batch):  # fewer tokens than a linear is wide, and more
                measure_rank_sensitivity(bank, units, measured, 4, quiet)
            formats = [*coded, parse_format("fp16")]
            measure_quantization_sensitivity(bank, units[-1:], formats, one_batch, quiet)  # GPTQ comes first
            measure_by_gradients(bank, units, formats[:1], one_batch, quiet)
            bank.rounding = None
            for case in cases(rounds):
                if case.dtype == dtype:
                    train(bank, case)
            bank.restore_dense()
            for fmt in MOVED if every else MOVED[:2]:
                move(fmt, dtype)
    print(len(cases(rounds)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # torch's threads of such a device now and then abort a process that ends by itself
