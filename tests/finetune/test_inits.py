"""Every adapter initialisation on every backend."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qra_bo.export.load import load
from qra_bo.finetune.adapters import inits
from qra_bo.finetune.adapters.inits import DECOMPOSITIONS, DIRECTIONS, GRADIENT_NORM, Initialiser
from qra_bo.finetune.adapters.lora import AdapterSettings, adapter_parameters, attach, detach, lora_layers
from qra_bo.finetune.data.load import byte_tokenizer, load_data
from qra_bo.finetune.data.options import TinyData
from qra_bo.finetune.manifest import PACKED, PROBE, probe_difference
from qra_bo.finetune.models.load import load_base
from qra_bo.finetune.oracle import FinetuneOracle, FinetuneSettings
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import packed
from qra_bo.finetune.training.loop import TrainSettings
from qra_bo.finetune.training.loss import CalibrationText
from qra_bo.memory.formats import parse_format
from qra_bo.space import Allocation, make_units, uniform
from qra_bo.space.decoder import spec_from_model
from qra_bo.trials import OWN_BASE, TrialSpec
from tests.finetune.models import tiny_llama

CPU = torch.device("cpu")
INITS = ("kaiming", "residual_svd", "cloq", *DIRECTIONS, *DECOMPOSITIONS)
MODEL, SPEC = tiny_llama(layers=1, vocab=512)
NAMES = [linear.name for linear in SPEC.linears]
FORMATS = ("nf4", "int8", "hqq2", "hqq3", "hqq4", "hqq8")
BANK = LayerBank(MODEL, SPEC, [parse_format(f) for f in FORMATS], torch.float32, CPU)
TEXT = torch.arange(4 * 32).reshape(4, 32) % 512
START = CalibrationText(TEXT, TEXT, 2, 16)
DATA = load_data(TinyData(name="tiny", kind="tiny", held_out=0.2, max_records=64, calibration=4), byte_tokenizer(), 32)


def effective(init: str, fmt: str, rank: int, seed: int = 3) -> dict[str, torch.Tensor]:
    """Base plus adapter of every linear at the start, ``out x in``."""
    settings = AdapterSettings(2.0, init, 2)
    formats, ranks = dict.fromkeys(NAMES, fmt), dict.fromkeys(NAMES, rank)
    prepared = Initialiser(BANK, settings, START, None).prepare(formats, ranks, None)
    BANK.install({**formats, **prepared.bases})
    attach(MODEL, ranks, settings, seed, torch.float32, prepared.pairs)
    try:
        return {name: packed(layer.get_base_layer()).unpack() + 2.0 * (layer.lora_B["default"].weight.detach()
                                                                       @ layer.lora_A["default"].weight.detach())
                for name, layer in lora_layers(MODEL).items()}
    finally:
        detach(MODEL)


def lost(weights: dict[str, torch.Tensor]) -> float:
    """Sum over linears of the squared distance from the dense weights."""
    return sum(float((BANK.dense_weight(n) - w).square().sum()) for n, w in weights.items())


@pytest.mark.parametrize("fmt", FORMATS)
def test_error_aware_inits_are_closer_than_qlora(fmt: str) -> None:
    plain = lost(effective("kaiming", fmt, 4))
    svd, more = lost(effective("residual_svd", fmt, 4)), lost(effective("residual_svd", fmt, 8))
    assert more < svd < plain
    assert lost(effective("eva", fmt, 4)) == lost(effective("gradient", fmt, 4)) == plain  # B = 0: the base alone
    if parse_format(fmt).bits <= 4:
        assert lost(effective("loftq", fmt, 4)) < svd
        assert lost(effective("lq_lora", fmt, 4)) < plain


@pytest.mark.parametrize("fmt", ["hqq2", "nf4"])
def test_cloq_errs_less_on_the_inputs_than_the_plain_residual(fmt: str) -> None:
    BANK.restore_dense()
    inputs: dict[str, torch.Tensor] = {}
    handles = [MODEL.get_submodule(n).register_forward_pre_hook(lambda _m, args, n=n: inputs.update({n: args[0]}))
               for n in NAMES]
    with torch.no_grad():
        MODEL(input_ids=TEXT)
    for handle in handles:
        handle.remove()

    def on_inputs(init: str) -> dict[str, float]:
        return {n: float((inputs[n] @ (BANK.dense_weight(n) - w).t()).square().sum())
                for n, w in effective(init, fmt, 4).items()}

    plain, svd, cloq = (on_inputs(init) for init in ("kaiming", "residual_svd", "cloq"))
    assert all(cloq[n] < min(svd[n], plain[n]) for n in NAMES)


@pytest.mark.parametrize("init", ["eva", "cloq"])
def test_padding_starts_no_adapter(init: str) -> None:
    is_text = torch.arange(32) < torch.tensor([32, 20, 16, 9])[:, None]

    def pairs(pad: int) -> list[torch.Tensor]:
        ids = TEXT.where(is_text, torch.tensor(pad))
        maker = Initialiser(BANK, AdapterSettings(2.0, init, 2), CalibrationText(ids, ids, 2, 16, is_text), None)
        prepared = maker.prepare(dict.fromkeys(NAMES, "hqq3"), dict.fromkeys(NAMES, 2), None)
        return [tensor for name in NAMES for tensor in prepared.pairs[name] if tensor is not None]

    for one, other in zip(pairs(0), pairs(7), strict=True):
        torch.testing.assert_close(one, other)


def test_cloq_takes_one_pass_for_all_linears_in_the_formats_of_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    once = inits.each_input
    monkeypatch.setattr(inits, "each_input", lambda *args: passes.append(1) or once(*args))
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


@pytest.mark.parametrize("init", ["residual_svd", "cloq", "eva", "gradient"])
def test_initialisations_are_rank_nested(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inits, "KEPT_RANK", 8)
    monkeypatch.setattr(inits, "SKETCH_ROWS", 64)  # fewer than the widest linear has outputs

    def pairs(rank: int) -> dict[str, Any]:
        maker = Initialiser(BANK, AdapterSettings(2.0, init), START, None)
        return dict(maker.prepare(dict.fromkeys(NAMES, "hqq3"), dict.fromkeys(NAMES, rank), None).pairs)

    small, large = pairs(2), pairs(9)  # beyond what is kept at first
    for name in NAMES:
        if init == "gradient":  # its A is as large at every rank
            torch.testing.assert_close(small[name][0], large[name][0][:2] * (9 / 2) ** 0.5, atol=0, rtol=1e-6)
        else:
            assert torch.equal(small[name][0], large[name][0][:2])
        assert torch.equal(small[name][1], large[name][1][:, :2])


def test_evas_rows_span_the_inputs_best() -> None:
    BANK.restore_dense()
    seen: dict[str, torch.Tensor] = {}
    handle = MODEL.get_submodule(NAMES[0]).register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    with torch.no_grad():
        MODEL(input_ids=TEXT)
    handle.remove()
    x = seen["x"].reshape(-1, 64)
    start = Initialiser(BANK, AdapterSettings(2.0, "eva"), START, None).prepare({NAMES[0]: "nf4"}, {NAMES[0]: 4}, None)
    down, up = start.pairs[NAMES[0]]
    torch.testing.assert_close(down @ down.t(), torch.eye(4), atol=1e-4, rtol=0)
    kept = float((x @ down.t()).norm() ** 2)
    assert kept == pytest.approx(float(torch.linalg.svdvals(x)[:4].square().sum()), rel=1e-3)
    assert not up.any()


def weight_gradients(names: list[str]) -> dict[str, torch.Tensor]:
    """By automatic differentiation: of the sum of both batches' mean losses, ``out x in``."""
    BANK.restore_dense()
    weights = {name: MODEL.get_submodule(name).weight for name in names}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        loss = sum(MODEL(input_ids=ids, labels=ids).loss for ids in TEXT.split(2))
        return dict(zip(names, torch.autograd.grad(loss, list(weights.values())), strict=True))
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)


@pytest.mark.parametrize(("sketched", "share"), [(64, 0.8), (128, 0.999)])
def test_gradient_rows_are_the_leading_directions(
        sketched: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inits, "SKETCH_ROWS", sketched)
    ranks = dict.fromkeys(NAMES, 4)
    starts = Initialiser(BANK, AdapterSettings(2.0, "gradient"), START, None).prepare(
        dict.fromkeys(NAMES, "nf4"), ranks, None).pairs
    for name, gradient in weight_gradients(NAMES).items():
        down, up = starts[name]
        assert float(torch.linalg.matrix_norm(down)) == pytest.approx(GRADIENT_NORM, rel=1e-5)
        rows = down / (GRADIENT_NORM / 2)
        torch.testing.assert_close(rows @ rows.t(), torch.eye(4), atol=1e-3, rtol=0)
        best = float(torch.linalg.svdvals(gradient)[:4].square().sum())
        kept = float((gradient @ rows.t()).square().sum())
        assert (share if gradient.shape[0] > 64 else 0.999) * best <= kept <= 1.001 * best  # wider ones are sketched
        assert not up.any()


def test_rows_beyond_the_directions_are_random() -> None:
    name = next(n for n in NAMES if n.endswith("k_proj"))  # 32 outputs: no gradient has more directions
    settings, formats, ranks = AdapterSettings(2.0, "gradient"), dict.fromkeys(NAMES, "fp16"), {name: 40}
    starts = Initialiser(BANK, settings, START, None).prepare(formats, ranks, None).pairs
    BANK.install(formats)

    def rows(chosen: Any) -> torch.Tensor:
        attach(MODEL, ranks, settings, 3, torch.float32, chosen)
        try:
            return lora_layers(MODEL)[name].lora_A["default"].weight.detach().clone()
        finally:
            detach(MODEL)

    ours, dice = rows(starts), rows(None)
    assert torch.equal(ours[:32], starts[name][0])
    assert torch.equal(ours[32:], dice[32:])


def test_loftq_leaves_linears_in_16_bits_random() -> None:
    assert not Initialiser(BANK, AdapterSettings(2.0, "loftq"), START, None).prepare(
        dict.fromkeys(NAMES, "fp16"), dict.fromkeys(NAMES, 2), None).pairs


def make(init: str, model: Any = None) -> FinetuneOracle:
    model = tiny_llama(vocab=512)[0] if model is None else model
    spec = spec_from_model(model, "tiny")
    formats = tuple(parse_format(name) for name in ("hqq3", "nf4"))
    train = TrainSettings(batch=2, logits_chunk=16)
    settings = FinetuneSettings(train, AdapterSettings(2.0, init, 2), 4, (), 4)
    bank = LayerBank(model, spec, formats, torch.float32, CPU, keep_dense=True)
    return FinetuneOracle(DATA, make_units(spec, "layer"), formats, bank, settings, None, None, {})


def quiet(*_: object) -> None:
    return None


REQUEST = TrialSpec(Allocation(("hqq3", "nf4"), (3, 1)), 3, 3, 5, 5e-3)


@pytest.mark.parametrize("init", INITS)
def test_a_trial_does_not_depend_on_earlier_trials(init: str) -> None:
    oracle = make(init)
    first = oracle.evaluate(REQUEST, quiet).loss
    oracle.evaluate(replace(REQUEST, allocation=uniform(2, "nf4", 2), steps=1), quiet)
    oracle.evaluate(replace(REQUEST, allocation=Allocation(("hqq3", "nf4"), (2, 1)), steps=1), quiet)
    assert oracle.evaluate(REQUEST, quiet).loss == first
    assert make(init).evaluate(REQUEST, quiet).loss == first
    assert first is not None
    if init != "kaiming":
        assert first != make("kaiming").evaluate(REQUEST, quiet).loss


@pytest.mark.parametrize("init", ["residual_svd", "cloq", *OWN_BASE])
def test_a_loaded_run_has_the_logits_of_the_trained_model(init: str, tmp_path: Path) -> None:
    node = {"name": "tiny", "source": "random", "n_layers": 2, "hidden_size": 64, "intermediate_size": 128,
            "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "vocab_size": 512, "tied": True}
    model, _ = load_base(node)
    oracle = make(init, model)
    oracle.finalise(Allocation(("hqq3", "nf4"), (2, 4)).to_json(), {"steps": 2}, 7, 5e-3, str(tmp_path), node, quiet)
    loaded, _ = load(tmp_path)
    assert probe_difference(loaded, tmp_path / PROBE, CPU) == 0.0
    assert (tmp_path / PACKED).is_file() == (init in OWN_BASE)
    measured = oracle.measure_peak(REQUEST.allocation.to_json(), 0, quiet)["measured_bytes"]
    assert measured == make("kaiming", load_base(node)[0]).measure_peak(
        REQUEST.allocation.to_json(), 0, quiet)["measured_bytes"]  # the same bytes, whatever they hold


@pytest.mark.parametrize(("init", "training", "forward"), [
    ("eva", 0, 4 * 32), ("cloq", 0, 4 * 32), ("gradient", 4 * 32, 0)])
def test_passes_of_an_init_count_with_the_profile(init: str, training: int, forward: int) -> None:
    plain, start = make("kaiming"), make(init)
    plain.profile(quiet)
    start.profile(quiet)
    assert start.profile_cost["training_tokens"] - plain.profile_cost["training_tokens"] == training
    assert start.profile_cost["forward_tokens"] - plain.profile_cost["forward_tokens"] == forward


def test_parameters_are_views_of_nothing_shared() -> None:
    """Training one allocation must not change what the next one starts from."""
    maker = Initialiser(BANK, AdapterSettings(2.0, "residual_svd"), START, None)
    formats, ranks = dict.fromkeys(NAMES, "nf4"), dict.fromkeys(NAMES, 2)
    starts = maker.prepare(formats, ranks, None).pairs
    BANK.install(formats)
    attach(MODEL, ranks, AdapterSettings(2.0, "residual_svd"), 0, torch.float32, starts)
    for pair in adapter_parameters(MODEL).values():
        for parameter in pair.values():
            parameter.data.add_(1.0)
    detach(MODEL)
    again = maker.prepare(formats, ranks, None).pairs
    assert all(torch.equal(again[n][0], starts[n][0]) and torch.equal(again[n][1], starts[n][1]) for n in NAMES)
