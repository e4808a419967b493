"""Every kind of device work of a search, on the fake device: ``python -m tests.fake_device.search``.

Prints the number of combinations that ran; a mismatch of devices or types ends it with a traceback.
"""

from tests.fake_device.harness import DEVICE, fake_device  # noqa: I001 - registers the device before torch is used

from itertools import count

import numpy as np
import torch

from qra_bo.finetune.adapters.inits import Initialiser
from qra_bo.finetune.adapters.lora import AdapterSettings, adapter_parameters, attach, detach
from qra_bo.finetune.models.checkpointing import use_checkpointing
from qra_bo.finetune.models.host_linear import keep_on_host
from qra_bo.finetune.models.load import use_fast_attention
from qra_bo.finetune.profiling import measure_quantization_sensitivity, measure_rank_sensitivity
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.rounding import Rounding
from qra_bo.finetune.training.loop import TrainSettings, held_out, train_steps, unit_groups
from qra_bo.finetune.training.loss import CalibrationText
from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW
from qra_bo.memory.formats import FORMATS, parse_format
from qra_bo.memory.optimizers import OPTIMIZERS
from qra_bo.space import make_units
from tests.finetune.models import tiny_llama

INITS = ("kaiming", "residual_svd", "eva", "gradient", "loftq", "lq_lora", "pissa")
MAIN = tuple(name for name in FORMATS if "-" not in name and name not in ("ref2", "ref3", "ref5", "ref6", "ref8"))
"""Formats that differ in their code, and not in a group's size alone."""
LENGTH, BATCH = 8, 2
TEXT = np.zeros((4, LENGTH), dtype=np.int64)


def quiet(*_: object) -> None:
    return None


def train(bank: LayerBank, fmt: str, init: str, optimizer: str, text: CalibrationText, dtype: torch.dtype) -> None:
    """Install, initialise, attach, train two accumulating steps, evaluate, detach."""
    units = make_units(bank.spec, "layer")
    formats = {linear.name: fmt for linear in bank.spec.linears}
    ranks = dict.fromkeys(formats, 2)
    prepared = Initialiser(bank, AdapterSettings(init=init), text, None).prepare(formats, ranks, None)
    bank.install({**formats, **prepared.bases})
    attach(bank.model, ranks, AdapterSettings(init=init), 0, dtype, prepared.pairs)
    settings = TrainSettings(BATCH, 2, logits_chunk=8, optimizer=AdamWSettings(kind=optimizer))
    unit_of = {linear.name: unit.name for unit in units for linear in unit.linears}
    groups = unit_groups(adapter_parameters(bank.model), unit_of, {unit.name: 2 for unit in units}, settings, 1.0)
    inner = UnitwiseAdamW(groups, settings.optimizer)
    order = np.tile(np.arange(settings.step_sequences), (2, 1))
    train_steps(bank.model, inner, TEXT, TEXT, order, 0, 2, 2, settings, DEVICE)
    held_out(bank.model, TEXT, TEXT, settings, DEVICE)
    assert {t.device.type for t in inner.state().values()} == {"cpu"}
    assert {p.device.type for p in bank.model.parameters()} == {DEVICE.type}
    detach(bank.model)


def main() -> None:
    done = count()
    formats = tuple(parse_format(name) for name in FORMATS)
    for dtype in (torch.bfloat16, torch.float32):
        with fake_device():
            model, spec = tiny_llama(layers=1, dtype=dtype)
            use_fast_attention(model, DEVICE, dtype)
            keep_on_host(model, [linear.name for linear in spec.linears])
            model.to(DEVICE)
            text = CalibrationText(torch.from_numpy(TEXT), torch.from_numpy(TEXT), BATCH, 8)
            names = [linear.name for linear in spec.linears]
            coded = [f for f in formats if f.bits < 16 and f.backend != "none"]
            rounding = Rounding(model, names, coded, text.ids, DEVICE, None)
            bank = LayerBank(model, spec, (), dtype, DEVICE, rounding=rounding,
                             dense_on_device=dtype == torch.bfloat16)
            bank.restore_dense()
            units = make_units(spec, "layer")
            measure_rank_sensitivity(bank, units, text, 4, quiet)
            next(done)
            measure_quantization_sensitivity(bank, units, formats, text, quiet)  # GPTQ chooses all codes first
            next(done)
            bank.rounding = None
            kinds = [(name, init) for name in MAIN for init in (INITS if dtype == torch.bfloat16 else INITS[:1])]
            kinds += [(name, "kaiming") for name in FORMATS if name not in MAIN]
            for at, (fmt, init) in enumerate(kinds):
                train(bank, fmt, init, OPTIMIZERS[at % len(OPTIMIZERS)], text, dtype)
                next(done)
            use_checkpointing(model)
            for optimizer in OPTIMIZERS:
                train(bank, "nf4", "kaiming", optimizer, text, dtype)
                next(done)
            bank.restore_dense()
    print(next(done))


if __name__ == "__main__":
    main()
