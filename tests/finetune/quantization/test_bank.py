"""The layer bank: packed once, swapped in place, bit for bit the same on the way back."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.memory_probe import module_tensors
from qra_bo.finetune.quantization.bank import LayerBank, refuse_reproducing_formats, relative_error
from qra_bo.finetune.quantization.base import State, storage_bytes
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import StopRequested
from qra_bo.space import DecoderSpec, StorageFormat
from qra_bo.utils.errors import ConfigError, ContractError, ModelError
from tests.conformance.quantizer import quantize
from tests.finetune.models import logits_of, tiny_llama

FORMATS = tuple(parse_format(name) for name in ("hqq2", "hqq3", "nf4", "int8", "fp16"))
logits = partial(logits_of, ids=torch.arange(24).reshape(2, 12))


def make_bank(dtype: torch.dtype = torch.bfloat16, **options: Any) -> tuple[Any, DecoderSpec, LayerBank]:
    model, spec = tiny_llama(dtype=dtype)
    return model, spec, LayerBank(model, spec, FORMATS, dtype, "cpu", **options)


def uniform(spec: DecoderSpec, fmt: str) -> dict[str, str]:
    return {linear.name: fmt for linear in spec.linears}


def mixed(spec: DecoderSpec) -> dict[str, str]:
    return {linear.name: FORMATS[i % len(FORMATS)].name for i, linear in enumerate(spec.linears)}


def test_swaps_are_bit_identical_and_pack_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, spec, bank = make_bank()
    dense = logits(model)
    bank.build()
    pack = bank._pack
    monkeypatch.setattr(bank, "_pack", lambda name, fmt: pack(name, fmt) if fmt.bits == 16
                        else pytest.fail("packed twice"))
    first = {}
    for choice in (uniform(spec, "nf4"), mixed(spec), uniform(spec, "hqq2")):
        bank.install(choice)
        first[tuple(choice.values())] = logits(model)
    outputs = list(first.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(outputs) for b in outputs[:i])
    for choice in (mixed(spec), uniform(spec, "hqq2"), uniform(spec, "nf4")):
        bank.install(choice)
        assert dict(bank.current) == choice
        assert torch.equal(logits(model), first[tuple(choice.values())])
    bank.restore_dense()
    assert torch.equal(logits(model), dense)
    assert dict(bank.current) == {}


def test_only_what_is_named_and_differs_is_swapped() -> None:
    model, spec, bank = make_bank()
    names = [linear.name for linear in spec.linears]
    bank.install({names[0]: "nf4", names[1]: "int8"})
    before = {name: model.get_submodule(name) for name in names}
    bank.install({names[0]: "nf4", names[1]: "hqq3"})
    after = {name: model.get_submodule(name) for name in names}
    assert [name for name in names if before[name] is not after[name]] == [names[1]]
    assert dict(bank.current) == {names[0]: "nf4", names[1]: "hqq3"}


def test_head_embedding_and_their_tie_are_untouched() -> None:
    model, spec, bank = make_bank()
    head, embedding = model.lm_head, model.get_input_embeddings()
    bank.install(uniform(spec, "hqq3"))
    assert model.lm_head is head
    assert type(head) is nn.Linear
    assert head.weight is embedding.weight
    left = [name for name, m in model.named_modules() if type(m) is nn.Linear]
    assert left == ["lm_head"]


def test_kept_dense_weights_change_no_bit_nor_measured_bytes() -> None:
    plain_model, spec, plain = make_bank()
    model, _, bank = make_bank(keep_dense=True)
    for choice in (mixed(spec), uniform(spec, "nf4")):
        plain.install(choice)
        bank.install(choice)
        assert torch.equal(logits(model), logits(plain_model))
    held, packed_alone = storage_bytes(module_tensors(model)), storage_bytes(module_tensors(plain_model))
    assert held > packed_alone
    with bank.only_packed():
        assert storage_bytes(module_tensors(model)) == packed_alone
        assert torch.equal(logits(model), logits(plain_model))
    assert storage_bytes(module_tensors(model)) == held


def is_mapped(state: State, folder: Path) -> bool:
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [tuple(int(end, 16) for end in m[0].split("-")) for m in maps if m[-1].startswith(str(folder))]
    return all(any(first <= t.data_ptr() < last for first, last in spans) for t in state.values())


def test_layers_on_disk_are_mapped_shared_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_model, spec, plain = make_bank()
    model, _, bank = make_bank(store=TensorStore(tmp_path, {}))
    bank.build()
    assert all(is_mapped(bank.state(m.name, fmt.name), tmp_path) for m in spec.linears for fmt in FORMATS[:-1])
    name = spec.linears[0].name
    assert bank.state(name, "fp16")["codes"].data_ptr() == bank.dense_weight(name).data_ptr()  # the base itself
    assert not is_mapped(plain.state(name, "nf4"), tmp_path)
    choice = mixed(spec)
    plain.install(choice)
    bank.install(choice)
    assert torch.equal(logits(model), logits(plain_model))
    assert bank.stored_bytes(choice) == plain.stored_bytes(choice)
    _, _, other = make_bank(store=TensorStore(tmp_path, {}))
    monkeypatch.setattr(other, "nearest", lambda _name, fmt: pytest.fail("packed again"))
    other.install({name: fmt for name, fmt in choice.items() if fmt != "fp16"})
    assert all(is_mapped(other.installed_state(m), tmp_path) for m in other.current)


@pytest.mark.parametrize("base", [torch.float16, torch.bfloat16, torch.float32])
def test_no_cast_of_the_base_is_kept(base: torch.dtype) -> None:
    model, spec = tiny_llama(dtype=base)
    bank = LayerBank(model, spec, FORMATS, torch.bfloat16, "cpu")
    bank.build()
    choice = mixed(spec)
    bank.install(choice)
    sizes = bank.stored_bytes(choice)
    assert {fmt for _, fmt in bank._states} == {fmt.name for fmt in FORMATS if fmt.bits < 16}
    for name in (name for name, fmt in choice.items() if fmt == "fp16"):
        weight = model.get_submodule(name).weight
        wanted = bank.nearest(name, parse_format("fp16"))["codes"]
        assert torch.equal(weight, wanted)
        assert torch.equal(bank.installed_state(name)["codes"], wanted)
    _, _, same = make_bank()
    assert sizes == same.stored_bytes(choice)


def test_a_disk_that_takes_nothing_leaves_layers_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    model, spec, bank = make_bank(store=TensorStore(tmp_path / "file", {}))
    plain_model, _, plain = make_bank()
    for one in (bank, plain):
        one.install(uniform(spec, "nf4"))
    assert torch.equal(logits(model), logits(plain_model))
    assert "can't be cached" in caplog.text


def test_stop_packs_none_of_the_layers_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    _, spec, bank = make_bank()
    packed, pack = list[str](), bank._pack

    def slow(name: str, fmt: StorageFormat) -> State:
        time.sleep(0.05)
        packed.append(name)
        return pack(name, fmt)

    def stop(what: str, done: int, total: int) -> None:
        raise StopRequested

    monkeypatch.setattr(bank, "_pack", slow)
    with pytest.raises(StopRequested):
        bank.build(stop)
    assert 1 <= len(packed) < len(spec.linears)  # of four formats


@pytest.mark.parametrize(("choice", "error", "message"), [
    ({"model.layers.0.mlp.up_proj": "nf5"}, ConfigError, "nf4"),
    ({"lm_head": "nf4"}, ContractError, "lm_head"),
    ({"model.layers.9.mlp.up_proj": "nf4"}, ContractError, "layers.9"),
    ({"model.layers.9.mlp.up_proj": "fp16"}, ContractError, "layers.9"),
])
def test_bad_choices_change_nothing(choice: dict[str, str], error: type[Exception], message: str) -> None:
    model, _, bank = make_bank()
    before = logits(model)
    with pytest.raises(error, match=message):
        bank.install({"model.layers.0.mlp.gate_proj": "hqq2", **choice})
    assert torch.equal(logits(model), before)
    assert dict(bank.current) == {}


def test_refuses_attached_adapters() -> None:
    model, spec, bank = make_bank()
    model.model.layers[0].mlp.up_proj = nn.Sequential(model.model.layers[0].mlp.up_proj)
    with pytest.raises(ContractError, match="adapters"):
        bank.install(uniform(spec, "nf4"))


def test_refuses_a_model_of_other_shapes() -> None:
    model, _ = tiny_llama(layers=1)
    _, spec = tiny_llama(layers=2)
    with pytest.raises(ModelError, match=r"layers\.1"):
        LayerBank(model, spec, FORMATS, torch.bfloat16, "cpu")


LADDER = tuple(parse_format(name) for name in ("hqq4", "nf4", "int8"))


def test_a_reproduced_base_refuses_that_format_alone() -> None:
    model, spec = tiny_llama()
    refuse_reproducing_formats(LayerBank(model, spec, LADDER, torch.float32, "cpu"), LADDER)
    fmt = LADDER[0]
    for linear in spec.linears:
        module = model.get_submodule(linear.name)
        module.weight.data.copy_(quantize(module, fmt, torch.float32).unpack())
    bank = LayerBank(model, spec, LADDER, torch.float32, "cpu")
    assert relative_error(bank, spec.linears[0].name, fmt) < 0.01
    with pytest.raises(ConfigError, match="hqq4 of 4 bits reproduces this base") as caught:
        refuse_reproducing_formats(bank, LADDER)
    assert len(caught.value.problems) == 1
