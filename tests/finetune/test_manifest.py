"""A run's manifest, and the model that is rebuilt from it."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qra_bo.export.comparison import with_adapter
from qra_bo.export.load import load
from qra_bo.finetune.adapters.lora import adapter_parameters, attach
from qra_bo.finetune.manifest import (
    MANIFEST,
    PACKED,
    adapter_digest,
    flatten,
    read_manifest,
    sealed,
    tensors_digest,
    unflatten,
    write_manifest,
)
from qra_bo.finetune.models.load import cast_parameters, load_base
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.memory.formats import parse_format
from qra_bo.space.decoder import spec_from_model
from qra_bo.utils.errors import OutputError, UserError
from tests.finetune.models import logits_of

MODEL = {"name": "tiny", "source": "random", "n_layers": 2, "hidden_size": 64, "intermediate_size": 128, "n_heads": 4,
         "n_kv_heads": 2, "head_dim": 16, "vocab_size": 300, "tied": True}
FORMATS = ("nf4", "hqq2", "int8", "fp16", "hqq3", "nf4-nodq", "t2")
logits = partial(logits_of, ids=torch.arange(16).reshape(2, 8))


def make_run(folder: Path) -> torch.Tensor:
    """A run's folder with adapter and manifest; returns the logits at the end of its 'training'."""
    dtype = torch.bfloat16
    model, _ = load_base(MODEL)
    cast_parameters(model, dtype)
    spec = spec_from_model(model, "tiny")
    bank = LayerBank(model, spec, [parse_format(f) for f in FORMATS], dtype, "cpu")
    bank.install({m.name: FORMATS[i % len(FORMATS)] for i, m in enumerate(spec.linears)})
    ranks = {m.name: i % 4 for i, m in enumerate(spec.linears)}
    wrapped = attach(model, ranks, 2.0, 3, dtype)
    draw = torch.Generator().manual_seed(5)
    for pair in adapter_parameters(model).values():
        pair["B"].data.copy_(torch.randn(pair["B"].shape, generator=draw) * 0.1)
    wrapped.save_pretrained(folder / "adapter")
    write_manifest(folder, bank, ranks, 2.0, MODEL)
    from qra_bo.finetune.models.load import use_fast_attention
    use_fast_attention(model, torch.device("cpu"), dtype)
    return logits(model.eval())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    folder = tmp_path_factory.mktemp("run")
    return folder, make_run(folder)


def edit(source: Path, target: Path, change: Any) -> Path:
    """A copy of a run whose manifest was changed and sealed again, as its author could."""
    import shutil
    shutil.copytree(source, target)
    data = json.loads((target / MANIFEST).read_text())
    change(data)
    (target / MANIFEST).write_text(json.dumps(sealed(data)))
    return target


def test_loaded_logits_equal_those_at_the_end(run: tuple[Path, torch.Tensor]) -> None:
    folder, expected = run
    model, tokenizer = load(folder)
    assert torch.equal(logits(model), expected)
    assert not model.training
    assert tokenizer("a")["input_ids"]
    assert not any(p.requires_grad for p in model.parameters())


def test_the_adapter_is_read_onto_the_device_of_the_model(run: tuple[Path, torch.Tensor],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    folder, expected = run
    monkeypatch.setattr("peft.peft_model.infer_device", lambda: "cuda:0")  # PEFT's own choice where there is a GPU
    assert torch.equal(logits(load(folder)[0]), expected)
    assert torch.isfinite(logits(with_adapter(load(folder, adapter=False)[0], folder / "adapter"))).all()


def test_manifest_states_what_contract_asks_for(run: tuple[Path, torch.Tensor]) -> None:
    folder, _ = run
    data = json.loads((folder / MANIFEST).read_text())
    assert data["model"] == MODEL
    assert {"torch", "bitsandbytes", "hqq", "peft", "transformers", "python"} <= set(data["versions"])
    first = data["modules"]["model.layers.0.self_attn.q_proj"]
    assert {k: first[k] for k in ("backend", "name", "bits", "block", "double_quant", "shape", "rank", "alpha")} == {
        "backend": "bitsandbytes", "name": "nf4", "bits": 4, "block": 64, "double_quant": True, "shape": [64, 64],
        "rank": 0, "alpha": 0}
    assert data["sha256"] == sealed(data)["sha256"]
    assert read_manifest(folder).to_json() == data


def test_digest_sees_names_types_shapes_and_bytes() -> None:
    base = torch.arange(4, dtype=torch.int32)
    others = [{"b": base}, {"a": base.view(2, 2)}, {"a": base.view(torch.float32)}, {"a": base + 1},
              {"a": base, "b": base}]
    digests = {tensors_digest(t) for t in [{"a": base}, *others]}
    assert len(digests) == 6
    assert tensors_digest({"a": base.clone()}) in digests


def wrong_checksum(data: dict[str, Any]) -> None:
    data["modules"]["model.layers.1.mlp.up_proj"]["sha256"] = "0" * 64


def other_base(data: dict[str, Any]) -> None:
    data["modules"]["model.layers.0.self_attn.o_proj"]["sha256"] = "0" * 64


def other_format(data: dict[str, Any]) -> None:
    data["modules"]["model.layers.0.self_attn.q_proj"]["block"] = 128


@pytest.mark.parametrize(("change", "message"), [
    (wrong_checksum, r"packed weights of model\.layers\.1\.mlp\.up_proj do not have the checksum"),
    (other_base, r"layers\.0\.self_attn\.o_proj in the base model are not those"),
    (lambda d: d.update(unquantised_sha256="0"), "embeddings, norms or biases differ"),
    (lambda d: d.update(schema_version=2), "schema version 2"),
    (lambda d: d.pop("modules"), "modules"),
    (other_format, "nf4"),
    (lambda d: d.update(packed="gone.safetensors"), "missing"),
    (lambda d: d["modules"]["model.layers.0.mlp.up_proj"].update(rank=7), "alpha / r must be one positive number"),
    (lambda d: d["model"].update(n_layers=1), "not those of its modules"),
    (lambda d: d["model"].update(source="moon"), "moon"),
])
def test_what_does_not_fit_is_refused(run: tuple[Path, torch.Tensor], tmp_path: Path, change: Any,
                                      message: str) -> None:
    folder = edit(run[0], tmp_path / "copy", change)
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize("leaf", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj",
                                  "mlp.down_proj"])
@pytest.mark.parametrize("change", [
    lambda t: t.pop("codes"), lambda t: t.update(more=torch.zeros(3)), lambda t: t.pop(sorted(t)[-1]),
    lambda t: t.update(codes=t["codes"].to(torch.int16)), lambda t: t.update(codes=t["codes"][:-1]),
    lambda t: t.update(codes=t["codes"].repeat(2, *[1] * (t["codes"].dim() - 1))), lambda t: t.clear(),
    lambda t: t.update({sorted(t)[-1]: t[sorted(t)[-1]].double()}),
    lambda t: [x.view(-1)[:1].fill_(torch.nan) for x in t.values() if x.is_floating_point()]])
def test_packed_weights_of_another_shape_are_refused(run: tuple[Path, torch.Tensor], tmp_path: Path, leaf: str,
                                                     change: Any) -> None:
    name, states = f"model.layers.0.{leaf}", unflatten(load_file(run[0] / PACKED))
    change(states[name])

    def seal(data: dict[str, Any]) -> None:
        data["modules"][name]["sha256"] = tensors_digest(states[name])

    folder = edit(run[0], tmp_path / "copy", seal)
    save_file(flatten(states), folder / PACKED)
    with pytest.raises(OutputError, match="are not those of"):
        load(folder)


def test_adapter_of_another_run_is_refused(run: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder = edit(run[0], tmp_path / "copy", lambda d: None)
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)
    with pytest.raises(OutputError, match="checksum of the run's manifest: it is damaged or belongs to another run"):
        load(folder)
    load(folder, adapter=False)
    edit_again = json.loads((folder / MANIFEST).read_text()) | {"adapter_sha256": adapter_digest(folder / "adapter")}
    (folder / MANIFEST).write_text(json.dumps(sealed(edit_again)))
    with pytest.raises(OutputError, match="does not have the rank"):
        load(folder)


@pytest.mark.parametrize("change", [lambda d: d["model"].update(rope=1), lambda d: d["versions"].update(torch="1"),
                                    lambda d: d["modules"]["model.layers.0.mlp.up_proj"].update(alpha=3.0),
                                    lambda d: d.update(sha256=None)])
def test_manifest_changed_after_it_was_written_is_refused(run: tuple[Path, torch.Tensor], tmp_path: Path,
                                                          change: Any) -> None:
    folder = edit(run[0], tmp_path / "copy", lambda d: None)
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(OutputError, match="changed after it was written"):
        read_manifest(folder)
