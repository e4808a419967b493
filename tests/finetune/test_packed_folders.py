"""Folders that other quantisers packed: models over their codes against dense ones; damaged folders."""

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qra_bo.finetune.models.load import without_bars
from qra_bo.finetune.models.packed_folder import packed_folder
from qra_bo.finetune.quantization.base import PackedLinear
from qra_bo.finetune.quantization.stored_model import load_stored
from qra_bo.utils.errors import ModelError
from tests.finetune.packed_folders import awq, compressed, gptq, write, write_nf4

IDS = torch.arange(5, 300, 7).unsqueeze(0)


def node(path: Path) -> dict[str, Any]:
    return {"name": "random", "source": "path", "path": str(path), "gguf_file": None, "revision": None,
            "trust_remote_code": False}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits.float()
    return found


def formats(model: Any) -> set[str]:
    return {module.fmt.name for module in model.modules() if isinstance(module, PackedLinear)}


def assert_equal(stored: Any, dense: Any) -> None:
    torch.testing.assert_close(logits(stored), logits(dense), rtol=1e-5, atol=1e-5)
    gradients = []
    for model in (stored, dense):
        rows = model.get_input_embeddings()(IDS).detach().float().requires_grad_(True)
        model(inputs_embeds=rows, use_cache=False).logits.logsumexp(-1).sum().backward()
        gradients.append(rows.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5 * float(gradients[1].abs().max()))


@pytest.mark.parametrize(("made", "expected"), [
    (gptq(), "sym4-g32"), (gptq(8, 128), "sym8-g128"), (gptq(3, 64, sym=False), "int3-g64"),
    (gptq(4, 64, desc_act=True), "gidx4-g64"), (gptq(2, 32, sym=False, desc_act=True), "gidx2-g32"),
    (gptq(4, 128, sym=False, version=2), "int4-g128"), (awq(), "int4-g64"), (awq(128), "int4-g128"),
    (compressed(), "sym4-g32"), (compressed(3, 64, sym=False), "int3-g64"), (compressed(5, 128), "sym5-g128")])
def test_logits_and_gradients_equal_those_of_the_weights(tmp_path: Path, made: tuple[Any, Any], expected: str) -> None:
    dense = write(tmp_path / "m", *made, tied=expected == "int4-g64")
    stored = load_stored(node(tmp_path / "m"), torch.float32)[0].float()
    assert formats(stored) == ({expected, "fp16"} if made[0]["quant_method"] == "compressed-tensors" else {expected})
    assert_equal(stored, dense)


@pytest.mark.parametrize("double", [True, False])
def test_nf4_equals_bitsandbytes(tmp_path: Path, double: bool) -> None:
    dense = write_nf4(tmp_path / "m", double=double)
    stored = load_stored(node(tmp_path / "m"), torch.float32)[0].float()
    assert formats(stored) == {"nf4" if double else "nf4-nodq"}
    assert_equal(stored, dense)


def test_compressed_tensors_equals_transformers(tmp_path: Path) -> None:
    write(tmp_path / "m", *compressed())
    with without_bars(warnings=False):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    stored = load_stored(node(tmp_path / "m"), torch.float32)[0].float()
    torch.testing.assert_close(logits(stored), logits(theirs), rtol=1e-5, atol=1e-5)


def test_zeros_of_compressed_tensors_equal_its_library(tmp_path: Path) -> None:
    write(tmp_path / "m", *compressed(sym=False))  # which transformers 5.24 refuses to load
    stored, found = load_stored(node(tmp_path / "m"), torch.float32)[0], load_file(tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme.model_validate(config["config_groups"]["group_0"])
    name = "model.layers.1.mlp.down_proj"
    parts = {key.rpartition(".")[2]: tensor for key, tensor in found.items() if key.startswith(name)}
    parts["weight_scale"] = parts["weight_scale"].float()
    theirs = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
    assert torch.equal(stored.get_submodule(name).unpack(), theirs)


def mutated(folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Change fields of ``quantization_config``, and the first layer's tensors of these ends: a function of each."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= fields
    (folder / "config.json").write_text(json.dumps(config))
    found = load_file(folder / "model.safetensors")
    for end, change in tensors.items():
        name = f"model.layers.0.{end}"
        value = change(found.pop(name))
        found |= {} if value is None else {name: value.contiguous()}
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def scaled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * float("inf")


def saying(offset: str) -> Any:
    """Change the offset of scales in nf4's JSON."""
    def change(tensor: torch.Tensor) -> torch.Tensor:
        facts = json.loads(tensor.numpy().tobytes())
        text = json.dumps({**facts, "nested_offset": "HERE"}).replace('"HERE"', offset)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return change


def cut(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:-1]


@pytest.mark.parametrize(("made", "fields", "tensors", "said"), [
    (gptq(), {"bits": 8}, {}, "bits"), (gptq(), {"checkpoint_format": "marlin"}, {}, "checkpoint_format"),
    (gptq(), {"lm_head": True}, {}, "lm_head"), (gptq(), {"quant_method": "fp8"}, {}, "quant_method"),
    (gptq(sym=False), {"sym": True}, {}, "sym"), (gptq(desc_act=True), {"desc_act": False}, {}, "desc_act"),
    (gptq(4, 16), {}, {}, "group_size"), (gptq(8, 32, sym=False), {}, {}, "bits"),
    (gptq(desc_act=True), {}, {"mlp.up_proj.g_idx": lambda t: t * 0}, "g_idx"),
    (gptq(), {}, {"mlp.up_proj.qweight": cut}, "up_proj"), (gptq(), {}, {"mlp.up_proj.qzeros": cut}, "qzeros"),
    (gptq(), {}, {"mlp.up_proj.scales": scaled}, "finite"),
    (gptq(), {}, {"mlp.up_proj.scales": lambda _: None}, "scales"),
    (awq(), {"version": "gemv"}, {}, "version"), (awq(), {"zero_point": False}, {}, "zero_point"),
    (awq(), {}, {"self_attn.q_proj.qzeros": lambda t: t.float()}, "qzeros"),
    (awq(), {}, {"self_attn.q_proj.bias": scaled}, "finite"),
    (compressed(), {"format": "marlin-24"}, {}, "format"),
    (compressed(), {"config_groups": {"a": 1}}, {}, "config_groups"),
    (compressed(), {"config_groups": {"a": {"weights": {"type": "float", "strategy": "group"}}}}, {}, "type"),
    (compressed(), {"config_groups": {"a": {"weights": {"type": "int", "strategy": "tensor"}}}}, {}, "strategy"),
    (compressed(), {}, {"mlp.gate_proj.weight_packed": cut}, "weight_packed"),
    (compressed(sym=False), {}, {"mlp.gate_proj.weight_zero_point": cut}, "weight_zero_point"),
    (compressed(sym=False), {}, {"mlp.gate_proj.weight_zero_point": lambda _: None}, "weight_zero_point"),
    # None: of bitsandbytes
    (None, {"bnb_4bit_quant_type": "fp4"}, {}, "bnb_4bit_quant_type"),
    (None, {"load_in_8bit": True}, {}, "load_in_8bit"),
    (None, {}, {"mlp.up_proj.weight.quant_map": lambda t: t / 2}, "quant_map"),
    (None, {}, {"mlp.up_proj.weight.nested_quant_map": lambda t: t / 2}, "nested_quant_map"),
    (None, {}, {"mlp.up_proj.weight.absmax": cut}, "absmax"),
    (None, {}, {"mlp.up_proj.weight.nested_absmax": scaled}, "finite"),
    (None, {}, {"mlp.up_proj.weight.quant_state.bitsandbytes__nf4": cut}, "quant_state"),
    *((None, {}, {"mlp.up_proj.weight.quant_state.bitsandbytes__nf4": saying(offset)}, said) for offset, said in (
        ("[" * 100_000, "quant_state"), ("1" + "0" * 400, "quant_state"), ("1e300", "nested_offset"))),
    (None, {}, {"mlp.up_proj.weight": lambda t: t.float()}, "up_proj")])
def test_other_folders_are_refused_in_one_sentence(tmp_path: Path, made: tuple[Any, Any] | None,
                                                   fields: Mapping[str, Any], tensors: Mapping[str, Any],
                                                   said: str) -> None:
    if made is None:
        write_nf4(tmp_path / "m")
    else:
        write(tmp_path / "m", *made)
    mutated(tmp_path / "m", fields, tensors)
    with pytest.raises(ModelError, match=said) as caught:
        load_stored(node(tmp_path / "m"), torch.float32)
    assert "\n" not in str(caught.value)


def test_tensors_without_a_place_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m", *gptq())
    found = load_file(tmp_path / "m" / "model.safetensors")
    zeros = {"model.layers.0.mlp.up_proj.bias": torch.zeros(256, dtype=torch.float16)}
    save_file(found | zeros, tmp_path / "m" / "model.safetensors")  # which AutoGPTQ writes for linears without a bias
    load_stored(node(tmp_path / "m"), torch.float32)
    save_file(found | {"model.layers.0.mlp.up_proj.act_scales": torch.ones(2)}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ModelError, match="act_scales"):
        load_stored(node(tmp_path / "m"), torch.float32)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_tied_head_may_be_there_once_more(tmp_path: Path, factor: int) -> None:
    dense = write(tmp_path / "m", *awq(), tied=True)
    found = load_file(tmp_path / "m" / "model.safetensors")
    copy = {"lm_head.weight": factor * found["model.embed_tokens.weight"]}  # as AutoGPTQ writes it
    save_file(found | copy, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with nullcontext() if factor == 1 else pytest.raises(ModelError, match="lm_head"):
        assert_equal(load_stored(node(tmp_path / "m"), torch.float32)[0].float(), dense)


def test_other_files_replace_no_tensors(tmp_path: Path) -> None:
    write(tmp_path / "m", *gptq())
    stray = tmp_path / "m" / "zz_old.safetensors"
    stray.write_bytes((tmp_path / "m" / "model.safetensors").read_bytes())
    readers = {id(tensor.reader) for tensor in packed_folder(tmp_path / "m").tensors.values()}
    assert len(readers) == 1
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "a.safetensors")
    with pytest.raises(ModelError, match="another file"):
        packed_folder(tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    assert packed_folder(tmp_path / "m").tensors
    for name in (stray, index):
        name.unlink()
        os.mkfifo(name)
        with pytest.raises(ModelError, match="a pipe"):
            packed_folder(tmp_path / "m")
        name.unlink()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    write(tmp_path / "m", *awq())
    file = tmp_path / "m" / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:int(share * len(data))])
    with pytest.raises(ModelError):
        packed_folder(tmp_path / "m")
    file.write_bytes((2**62).to_bytes(8, "little") + data[8:])
    with pytest.raises(ModelError):
        packed_folder(tmp_path / "m")
