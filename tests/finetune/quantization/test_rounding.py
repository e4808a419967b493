"""Codes chosen on a text: what layers lose, what stays the same, what is kept across runs, and a run that is loaded."""

import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qra_bo.config import gptq_sequences, gptq_tokens, load_config, make_spec
from qra_bo.finetune import profiling
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.data.records import DataSplits, TokenBlocks
from qra_bo.finetune.quantization import gptq, moments
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import backend_of
from qra_bo.finetune.quantization.gptq import compensated_codes
from qra_bo.finetune.quantization.moments import second_moments, shrink
from qra_bo.finetune.quantization.rounding import Rounding
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import quiet
from qra_bo.pipeline.finetune_oracle import caches, split_calibration
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.space import Allocation
from qra_bo.trials import TrialSpec
from qra_bo.utils.errors import ContractError, DeviceError, ModelError
from tests.finetune.models import tiny_llama

CPU = torch.device("cpu")
MODEL, SPEC = tiny_llama(layers=2, vocab=512)
NAMES = [linear.name for linear in SPEC.linears]
FORMATS = tuple(parse_format(name) for name in ("nf4", "int8", "int2-g64", "sym3-g32", "hqq3", "hqq5", "hqq6"))
NEAREST = "quantizer.rounding=rtn"
TEXT = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(0))


def make_bank(store: TensorStore | None = None, formats: tuple[str, ...] = ()) -> LayerBank:
    chosen = [f for f in FORMATS if not formats or f.name in formats]
    rounding = Rounding(MODEL, NAMES, chosen, TEXT, CPU, store)
    return LayerBank(MODEL, SPEC, FORMATS, torch.float32, CPU, rounding=rounding)


def inputs_of_linears() -> dict[str, Tensor]:
    """``X^T X`` of every linear of the dense model on ``TEXT``."""
    found: dict[str, Tensor] = {}
    handles = [MODEL.get_submodule(name).register_forward_pre_hook(
        lambda _m, args, name=name: found.__setitem__(name, second_moments(args[0]))) for name in NAMES]
    with torch.no_grad():
        MODEL.get_decoder()(input_ids=TEXT, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def test_a_format_of_neither_levels_nor_rings_keeps_its_own_codes() -> None:
    plain, free = parse_format("fp16"), parse_format("nf4")
    assert Rounding(MODEL, NAMES, [plain, free], TEXT, CPU, None).formats == [free]
    Rounding(MODEL, NAMES, [plain], TEXT, CPU, None).prepare(quiet)  # nothing to choose


def test_second_moments_computed_by_half_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.finetune.quantization.moments.COLUMNS", 4)
    inputs, total = torch.randn(64, 11, generator=torch.Generator().manual_seed(1)), torch.eye(11)
    for _ in range(2):
        assert second_moments(inputs, total) is total
    assert torch.equal(total, total.T)
    torch.testing.assert_close(total, torch.eye(11) + 2 * inputs.T @ inputs)


def test_gptq_reduces_output_errors_in_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "ALIKE", 0)  # this text is the one that counts
    plain, chosen, seen = LayerBank(MODEL, SPEC, FORMATS, torch.float32, CPU), make_bank(), inputs_of_linears()
    chosen.build()
    for fmt in FORMATS:
        for name in NAMES:
            lost = []
            for bank in (plain, chosen):
                state = bank.state(name, fmt.name)
                weight = bank.dense_weight(name).float()
                layer = backend_of(fmt).build(state, fmt, tuple(weight.shape), None, torch.float32)
                error = layer.unpack() - weight
                lost.append(float(((error @ seen[name]) * error).sum()))
            assert lost[1] < lost[0], (fmt.name, name)
        choice = dict.fromkeys(NAMES, fmt.name)
        assert plain.stored_bytes(choice) == chosen.stored_bytes(choice)


def test_moments_are_gone_while_codes_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    made, kept, package = list[weakref.ref[Tensor]](), list[int](), "qra_bo.finetune.quantization."

    def moments_of(inputs: Tensor, total: None) -> Tensor:
        found = second_moments(inputs, total)
        made.append(weakref.ref(found))
        return found

    def codes_of(*given: Any) -> list[Tensor]:
        kept.append(sum(moments() is not None for moments in made))
        return compensated_codes(*given)

    monkeypatch.setattr(package + "moments.second_moments", moments_of)
    monkeypatch.setattr(package + "rounding.compensated_codes", codes_of)
    make_bank(formats=("hqq3",)).choose_codes()
    assert kept == [3, 3, 3, 2, 1, 1, 0] * 2  # inputs of the layer that are still to come, for each of its linears


@pytest.mark.parametrize("padded", [False, True])
def test_moments_are_added_up_batch_by_batch(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    together, batches, sizes = dict[str, Tensor](), dict[str, Tensor](), set[int]()
    is_text = torch.arange(64) < torch.tensor([64, 40, 30, 20])[:, None] if padded else None
    real = moments.second_moments

    def sized(inputs: Tensor, total: Tensor | None) -> Tensor:
        sizes.add(len(inputs))
        return real(inputs, total)

    monkeypatch.setattr(moments, "second_moments", sized)
    for rows, found in ((2048, together), (64, batches)):
        sizes.clear()
        monkeypatch.setattr(moments, "ROWS", rows)
        moments.each_moments(MODEL, NAMES, TEXT, CPU, lambda names, made, found=found: found.update(
            dict.fromkeys(names, made)), is_text)
    assert max(sizes) == 64
    assert list(together) == list(batches) == NAMES
    for name, expected in together.items():
        torch.testing.assert_close(batches[name], expected, rtol=1e-4, atol=1e-3)
    if not padded:
        for name, expected in inputs_of_linears().items():
            torch.testing.assert_close(batches[name], shrink(expected, TEXT.numel()), rtol=1e-4, atol=1e-3)


def test_formats_outside_the_ladder_keep_the_nearest_codes() -> None:
    bank = make_bank(formats=("hqq3",))
    name = NAMES[0]
    assert torch.equal(bank.state(name, "nf4")["codes"], bank.nearest(name, parse_format("nf4"))["codes"])
    assert not torch.equal(bank.state(name, "hqq3")["codes"], bank.nearest(name, parse_format("hqq3"))["codes"])


def test_codes_are_chosen_before_anything_is_installed() -> None:
    bank, other = make_bank(formats=("hqq3",)), make_bank(formats=("hqq3",))
    bank.install({NAMES[0]: "nf4"})  # a format whose codes are the nearest
    try:
        with pytest.raises(ContractError, match="some of its linears are already quantised"):
            other.state(NAMES[1], "hqq3")
        early = bank.state(NAMES[1], "hqq3")
    finally:
        bank.restore_dense()
    assert torch.equal(early["codes"], other.state(NAMES[1], "hqq3")["codes"])


def test_padding_chooses_no_codes() -> None:
    def chosen(ids: Tensor, is_text: Tensor | None) -> dict[str, Tensor]:
        rounding = Rounding(MODEL, NAMES, [parse_format("hqq3")], ids, CPU, None, is_text)
        bank = LayerBank(MODEL, SPEC, FORMATS, torch.float32, CPU, rounding=rounding)
        bank.build()
        return {f"{name} {part}": tensor for name in NAMES for part, tensor in bank.state(name, "hqq3").items()}

    is_text = torch.arange(64) < torch.tensor([64, 40, 30, 20])[:, None]
    one, other = (TEXT.where(is_text, torch.tensor(pad)) for pad in (0, 7))
    expected = chosen(one, is_text)
    for key, tensor in chosen(other, is_text).items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0)
    everywhere = chosen(one, None)
    assert any(not torch.equal(tensor, expected[key]) for key, tensor in everywhere.items())


OPTIONS = ["+model=tiny", "data=tiny", "device=cpu", "train.batch=2", "train.length=32", "eval.sequences=8",
           "data.max_records=64", "quantizer.tokens=256"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA driver error: out of memory"),
                                   MemoryError()])
def test_out_of_memory_while_choosing_codes_is_a_device_error(error: Exception,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(raised: Exception) -> None:
        raise raised

    monkeypatch.setattr("qra_bo.finetune.quantization.rounding.each_moments", lambda *_: fail(error))
    with pytest.raises(DeviceError, match=r"choosing codes takes more than cpu holds.*smaller train\.length"):
        make_bank().build()
    monkeypatch.setattr("qra_bo.finetune.quantization.rounding.each_moments", lambda *_: fail(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        make_bank().build()


def test_saved_codes_are_not_chosen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TensorStore(tmp_path, {"a": 1})
    whole = make_bank(store)
    whole.build()
    with monkeypatch.context() as patch:
        patch.setattr("qra_bo.finetune.quantization.rounding.each_moments", lambda *_: pytest.fail("made again"))
        again = make_bank(TensorStore(tmp_path, {"a": 1}))
        for name, fmt in itertools.product(NAMES, FORMATS):
            for part, tensor in whole.state(name, fmt.name).items():
                assert torch.equal(again.state(name, fmt.name)[part], tensor)
    for name in NAMES[5:]:
        (store.folder / f"{name}.safetensors").unlink()
    told: list[int] = []
    rest = make_bank(store)
    rest.build(lambda what, done, total: told.append(total) if what.startswith("choose codes") else None)
    assert told == [len(NAMES) - 5] * (len(NAMES) - 5)
    for name in NAMES:
        for part, tensor in whole.state(name, "nf4").items():
            assert torch.equal(rest.state(name, "nf4")[part], tensor)


def test_one_process_chooses_codes_while_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (TensorStore(tmp_path, {"a": 1}) for _ in range(2))
    made, waiting_bank = make_bank(None), make_bank(second)
    made.build()
    monkeypatch.setattr("qra_bo.finetune.quantization.rounding.each_moments",
                        lambda *_: pytest.fail("they were made twice"))
    waits: list[tuple[int, int]] = []
    waiting = Event()

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("choose codes"):
            waits.append((done, total))
            waiting.set()

    with ThreadPoolExecutor(1) as pool:
        with first.alone(lambda: pytest.fail("nobody else has it")):  # a lock is its open file's, not its process's
            built = pool.submit(waiting_bank.build, progress)
            assert waiting.wait(60)
            for name in NAMES:
                first.save(name, {f"{fmt.name}:{part}": tensor for fmt in FORMATS
                                  for part, tensor in made.state(name, fmt.name).items()})
        built.result(60)
    assert waits[0] == (0, len(NAMES))
    assert first.count == len(NAMES)
    for name in NAMES:
        for part, tensor in made.state(name, "nf4").items():
            assert torch.equal(waiting_bank.state(name, "nf4")[part], tensor)


def test_waiting_for_codes_can_be_interrupted(tmp_path: Path) -> None:
    first, second = (TensorStore(tmp_path, {"a": 1}) for _ in range(2))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with first.alone(lambda: None), pytest.raises(KeyboardInterrupt):
        make_bank(second).build(stop)
    with second.alone(lambda: pytest.fail("the lock was kept")):
        pass


def test_one_trial_may_have_round_to_nearest_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRA_BO_CACHE", str(tmp_path / "cache"))
    losses: dict[Any, list[float | None]] = {}
    for rounding, orders in (("gptq", (None, "rtn", None)), ("rtn", (None,))):
        config = load_config([*OPTIONS, "quantizer.formats.3=[int3-g64]", f"quantizer.rounding={rounding}"])
        oracle: Any = make_oracle(config.to_dict(), str(tmp_path / rounding))
        n = len(oracle.units)
        for codes in orders:
            request = TrialSpec(Allocation(("int3-g64",) * n, (2,) * n), 2, 2, 1, 2e-3, codes=codes)
            losses.setdefault((rounding, codes), []).append(oracle.evaluate(request, lambda *_: None).loss)
        oracle.close()
    first, again = losses["gptq", None]
    assert first == again
    assert losses["gptq", "rtn"] == losses["rtn", None] != [first]


def test_inputs_that_are_not_finite_are_an_error() -> None:
    broken, _ = tiny_llama(layers=1, vocab=512)
    broken.get_submodule(NAMES[0]).weight.data.fill_(float("inf"))
    rounding = Rounding(broken, NAMES[:7], FORMATS[:2], TEXT, CPU, None)
    with pytest.raises(ModelError, match="are not finite in the 16-bit model"):
        rounding.prepare(quiet)


@pytest.mark.parametrize(("overrides", "tokens"), [
    (["+model=qwen2_5_0_5b_instruct", "train=cpu"], 48640), (["+model=llama2_7b"], 110592), (["+model=tiny"], 1920),
    (["+model=llama2_7b", "quantizer.tokens=4096"], 4096)])
def test_gptq_takes_ten_tokens_for_each_input_of_the_widest_linear(overrides: list[str], tokens: int) -> None:
    config = load_config(overrides)
    spec = make_spec(config)
    assert gptq_tokens(config, spec) == config.train.length * gptq_sequences(config, spec) == tokens
    assert gptq_sequences(load_config([*overrides, NEAREST]), spec) == 0


@pytest.mark.parametrize(("chosen_on", "first", "shared"), [(0, 0, 0), (10, 10, 0), (18, 16, 2), (99, 16, 4)])
def test_sensitivities_are_measured_on_text_that_chose_no_codes(chosen_on: int, first: int, shared: int) -> None:
    ids = np.arange(20)[:, None].repeat(3, axis=1)
    blocks = TokenBlocks(ids, ids)
    data, notes = split_calibration(DataSplits(blocks, blocks, blocks, blocks, "", ""), chosen_on, 4)
    assert data.calibration.input_ids[:, 0].tolist() == list(range(first, first + 4))
    assert [f"measured on {shared} of the same" in note for note in notes] == [True] * bool(shared)


@pytest.mark.parametrize(("overrides", "rounding"), [
    ([], "gptq"), (["oracle=synthetic"], "rtn"), ([NEAREST], "rtn")])
def test_gptq_is_the_default_where_codes_can_be_chosen(overrides: list[str], rounding: str) -> None:
    config = load_config(["+model=tiny", *overrides])
    assert config.quantizer.rounding == rounding
    assert load_config(["+model=tiny", *overrides, f"quantizer.rounding={rounding}"]).to_dict() == config.to_dict()


def keys(*more: str, text: int = 0, calibration: int = 1) -> list[str]:
    """Keys of codes and profile of a configuration, whose texts have these tokens."""
    config, ids = load_config(["+model=tiny", *more]), np.zeros((2, 3), dtype=np.int64)
    blocks = [TokenBlocks(ids + token, ids + token) for token in (text, calibration)]
    codes, profiles = caches(config, {"weights": "w"}, *blocks, Path("run"))
    return [store.folder.name for store in (codes, profiles)]


def test_cache_keys_are_made_of_what_decides_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest, chosen = keys(NEAREST), keys()
    assert len({*nearest, *chosen}) == 4
    assert nearest[0] == keys(NEAREST, text=5)[0]
    assert [a == b for a, b in zip(chosen, keys(text=5), strict=True)] == [False, False]
    assert [a == b for a, b in zip(chosen, keys(calibration=5), strict=True)] == [True, False]
    assert [a == b for a, b in zip(chosen, keys("bits=[3,4]"), strict=True)] == [False, False]
    for module, changed in ((gptq, [0, 1]), (profiling, [1])):
        with monkeypatch.context() as patch:
            patch.setattr(module, "VERSION", module.VERSION + 1)
            assert [i for i, (a, b) in enumerate(zip(chosen, keys(), strict=True)) if a != b] == changed


@pytest.mark.parametrize(("fmt", "same"), [("nf4", False), ("hqq6", True)])
def test_a_new_version_of_an_encoder_keeps_other_codes(fmt: str, same: bool, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRA_BO_CACHE", str(tmp_path / "cache"))
    def folder(references: bool = False) -> Path:
        config = load_config([*OPTIONS, "bits=[3,4]", f"effort.references={str(references).lower()}"])
        oracle: Any = make_oracle(config.to_dict(), str(tmp_path))
        oracle.close()
        return oracle.bank.rounding.store.folder

    before = folder()
    assert folder(references=True) == before  # which are rounded to nearest: a longer search goes on with the codes
    monkeypatch.setattr(type(backend_of(parse_format(fmt))), "VERSION", 2)
    assert (folder() == before) is same
