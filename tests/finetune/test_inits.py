"""Every adapter initialisation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qra_bo.export.load import load
from qra_bo.finetune.adapters import inits
from qra_bo.finetune.adapters.inits import Initialiser, Prepared
from qra_bo.finetune.adapters.lora import AdapterSettings, adapter_parameters, attach, detach, lora_layers
from qra_bo.finetune.adapters.lowrank import leading
from qra_bo.finetune.manifest import PACKED, PROBE, probe_difference
from qra_bo.finetune.models.load import load_base
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import packed
from qra_bo.finetune.training.loss import CalibrationText
from qra_bo.space import Allocation, uniform
from qra_bo.trials import TrialSpec
from tests.finetune.models import final_options, tiny_llama
from tests.finetune.test_finetune import make, quiet

CPU = torch.device("cpu")
INITS = ("kaiming", "cloq")
MODEL, SPEC = tiny_llama(layers=1, vocab=512)
NAMES = [linear.name for linear in SPEC.linears]
BANK = LayerBank(MODEL, SPEC, [], torch.float32, CPU)
TEXT = torch.arange(4 * 32).reshape(4, 32) % 512
START = CalibrationText(TEXT, TEXT, 2, 16)


def starts_of(init: str, fmt: str, rank: int, text: CalibrationText = START) -> Prepared:
    maker = Initialiser(BANK, AdapterSettings(2.0, init), text, None)
    return maker.prepare(dict.fromkeys(NAMES, fmt), dict.fromkeys(NAMES, rank), None)


def effective(init: str, fmt: str, rank: int) -> dict[str, torch.Tensor]:
    """Base plus adapter of every linear at the start, ``out x in``."""
    prepared = starts_of(init, fmt, rank)
    BANK.install({**dict.fromkeys(NAMES, fmt), **prepared.bases})
    attach(MODEL, dict.fromkeys(NAMES, rank), AdapterSettings(2.0, init), 3, torch.float32, prepared.pairs)
    try:
        return {name: packed(layer.get_base_layer()).unpack() + 2.0 * (layer.lora_B["default"].weight.detach()
                                                                       @ layer.lora_A["default"].weight.detach())
                for name, layer in lora_layers(MODEL).items()}
    finally:
        detach(MODEL)


@pytest.mark.parametrize("fmt", ["hqq2", "nf4", "int8"])
def test_cloq_errs_less_on_the_inputs(fmt: str) -> None:
    BANK.restore_dense()
    inputs: dict[str, torch.Tensor] = {}
    handles = [MODEL.get_submodule(n).register_forward_pre_hook(lambda _m, args, n=n: inputs.update({n: args[0]}))
               for n in NAMES]
    with torch.no_grad():
        MODEL(input_ids=TEXT)
    for handle in handles:
        handle.remove()

    def on_inputs(weights: dict[str, torch.Tensor]) -> dict[str, float]:
        return {n: float((inputs[n] @ (BANK.dense_weight(n) - w).t()).square().sum()) for n, w in weights.items()}

    base = effective("kaiming", fmt, 4)
    plain = {n: w + leading(BANK.dense_weight(n) - w, 4).product() for n, w in base.items()}
    kaiming, svd, cloq, more = map(on_inputs, (base, plain, effective("cloq", fmt, 4), effective("cloq", fmt, 8)))
    assert all(more[n] < cloq[n] < min(svd[n], kaiming[n]) for n in NAMES)


def test_padding_starts_no_adapter() -> None:
    is_text = torch.arange(32) < torch.tensor([32, 20, 16, 9])[:, None]

    def pairs(pad: int) -> list[torch.Tensor]:
        ids = TEXT.where(is_text, torch.tensor(pad))
        prepared = starts_of("cloq", "hqq3", 2, CalibrationText(ids, ids, 2, 16, is_text))
        return [tensor for name in NAMES for tensor in prepared.pairs[name]]

    for one, other in zip(pairs(0), pairs(7), strict=True):
        torch.testing.assert_close(one, other)


def test_cloq_takes_one_pass_for_all_linears_in_the_formats_of_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    once = inits.each_moments
    monkeypatch.setattr(inits, "each_moments", lambda *args: passes.append(1) or once(*args))
    maker = Initialiser(BANK, AdapterSettings(2.0, "cloq"), START, None)
    mixed = {name: ("hqq2", "nf4")[i % 2] for i, name in enumerate(NAMES)}
    maker.prepare(mixed, dict.fromkeys(NAMES, 2), None)
    maker.prepare(dict.fromkeys(NAMES, "nf4"), dict.fromkeys(NAMES, 4), None)
    assert len(passes) == 1
    maker.prepare({**mixed, NAMES[0]: "hqq3"}, dict.fromkeys(NAMES, 4), None)
    assert len(passes) == 2


@pytest.mark.parametrize("init", INITS)
def test_inits_use_no_global_generator_and_repeat(init: str) -> None:
    state = torch.random.get_rng_state()
    first, again = effective(init, "nf4", 3), effective(init, "nf4", 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[n], again[n]) for n in NAMES)


def test_cloq_is_rank_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inits, "KEPT_RANK", 8)
    small, large = (starts_of("cloq", "hqq3", rank).pairs for rank in (2, 9))  # 9: beyond what is kept at first
    for name in NAMES:
        assert torch.equal(small[name][0], large[name][0][:2])
        assert torch.equal(small[name][1], large[name][1][:, :2])


REQUEST = TrialSpec(Allocation(("hqq3", "nf4"), (3, 1)), 3, 3, 5, 5e-3)


@pytest.mark.parametrize("init", INITS)
def test_a_trial_does_not_depend_on_earlier_trials(init: str) -> None:
    oracle = make(init=init)
    first = oracle.evaluate(REQUEST, quiet).loss
    oracle.evaluate(replace(REQUEST, allocation=uniform(2, "nf4", 2), steps=1), quiet)
    oracle.evaluate(replace(REQUEST, allocation=Allocation(("hqq3", "nf4"), (2, 1)), steps=1), quiet)
    assert oracle.evaluate(REQUEST, quiet).loss == first
    assert make(init=init).evaluate(REQUEST, quiet).loss == first
    assert first is not None
    if init != "kaiming":
        assert first != make().evaluate(REQUEST, quiet).loss


def test_a_loaded_run_has_the_logits_of_the_trained_model(tmp_path: Path) -> None:
    node = {"name": "tiny", "source": "random", "n_layers": 2, "hidden_size": 64, "intermediate_size": 128,
            "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "vocab_size": 512, "tied": True}
    model, _ = load_base(node)
    oracle = make(init="cloq", base=model)
    oracle.finalise(Allocation(("hqq3", "nf4"), (2, 4)).to_json(), final_options(steps=2), 7, 5e-3, str(tmp_path), node,
                    quiet)
    loaded, _ = load(tmp_path)
    assert probe_difference(loaded, tmp_path / PROBE, CPU) == 0.0
    assert not (tmp_path / PACKED).is_file()
    measured = oracle.measure_peak(REQUEST.allocation.to_json(), 0, quiet)["measured_bytes"]
    assert measured == make(base=load_base(node)[0]).measure_peak(
        REQUEST.allocation.to_json(), 0, quiet)["measured_bytes"]  # the same bytes, whatever they hold


def test_the_pass_of_cloq_counts_with_the_profile() -> None:
    plain, cloq = make(), make(init="cloq")
    plain.profile(quiet)
    cloq.profile(quiet)
    assert cloq.profile_cost == {**plain.profile_cost, "forward_tokens": plain.profile_cost["forward_tokens"] + 4 * 32}


def test_parameters_are_views_of_nothing_shared() -> None:
    """Training one allocation must not change what the next one starts from."""
    maker = Initialiser(BANK, AdapterSettings(2.0, "cloq"), START, None)
    formats, ranks = dict.fromkeys(NAMES, "nf4"), dict.fromkeys(NAMES, 2)
    starts = maker.prepare(formats, ranks, None).pairs
    BANK.install(formats)
    attach(MODEL, ranks, AdapterSettings(2.0, "cloq"), 0, torch.float32, starts)
    for pair in adapter_parameters(MODEL).values():
        for parameter in pair.values():
            parameter.data.add_(1.0)
    detach(MODEL)
    again = maker.prepare(formats, ranks, None).pairs
    assert all(torch.equal(again[n][0], starts[n][0]) and torch.equal(again[n][1], starts[n][1]) for n in NAMES)
