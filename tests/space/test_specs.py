"""Specs told from numbers equal those of the real modules on the meta device."""

from importlib.resources import files
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from qra_bo.space import make_units
from qra_bo.space.decoder import FAMILIES, spec_from_hf_config, spec_from_model, spec_from_numbers
from qra_bo.utils.errors import ModelError

SMALL: dict[str, Any] = dict(n_layers=2, hidden_size=64, intermediate_size=160, n_heads=4, n_kv_heads=2, head_dim=16,
                             vocab_size=512, tied=True, attention_bias=False)
NUMBERS = tuple(SMALL)


def config_of(family: str, n: dict[str, Any]) -> Any:
    values = dict(num_hidden_layers=n["n_layers"], hidden_size=n["hidden_size"],
                  intermediate_size=n["intermediate_size"], num_attention_heads=n["n_heads"],
                  num_key_value_heads=n["n_kv_heads"], head_dim=n["head_dim"], vocab_size=n["vocab_size"],
                  tie_word_embeddings=n["tied"], pad_token_id=0, attention_bias=n["attention_bias"])
    if family in ("mistral", "qwen2"):
        values.pop("attention_bias")
    return AutoConfig.for_model(family, **values)


def model_files() -> list[str]:
    return sorted(f.name for f in files("conf").joinpath("model").iterdir() if f.name not in ("hf.yaml", "__init__.py"))


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load(files("conf").joinpath("model", name).read_text())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_equal_the_meta_model(family: str, tied: bool) -> None:
    n = {**SMALL, "tied": tied, "attention_bias": family in ("qwen2", "gpt_neox")}
    if family == "gpt_neox":
        n["n_kv_heads"] = n["n_heads"]
    assert spec_from_numbers("x", family, **n) == spec_from_hf_config(config_of(family, n), "x")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_attention_bias_is_counted(family: str) -> None:
    n = {**SMALL, "attention_bias": True}
    assert spec_from_numbers("x", family, **n) == spec_from_hf_config(config_of(family, n), "x")


@pytest.mark.parametrize("name", model_files())
def test_model_files_match_their_architectures(name: str) -> None:
    data = read(name)
    n = {key: data[key] for key in NUMBERS}
    spec = spec_from_numbers(data["name"], data["family"], **n)
    # All layers are alike: two of them prove the shapes, and the arithmetic of the rest is exact.
    two = {**n, "n_layers": 2}
    assert spec_from_numbers("x", data["family"], **two) == spec_from_hf_config(config_of(data["family"], two), "x")
    assert len(spec.linears) == 7 * n["n_layers"]
    assert f"{data['name']}.yaml" == name


PUBLISHED = {"smollm2_135m": 134_515_008, "llama2_7b": 6_738_415_616, "llama3_1_8b": 8_030_261_248,
             "llama3_2_3b": 3_212_749_824, "qwen2_5_7b": 7_615_616_512, "qwen2_5_3b": 3_085_938_688,
             "qwen3_4b": 4_022_468_096, "llama2_70b": 68_976_648_192}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    data = read(f"{name}.yaml")
    spec = spec_from_numbers(name, data["family"], **{key: data[key] for key in NUMBERS})
    assert spec.linear_numel + spec.other_numel == parameters


def test_model_files_have_the_same_keys() -> None:
    keys = [list(read(name)) for name in [*model_files(), "hf.yaml"]]
    assert all(k == keys[0] for k in keys)


def test_a_model_in_memory_gives_the_same_spec() -> None:
    config = config_of("llama", SMALL)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    spec = spec_from_model(model)
    assert spec == spec_from_hf_config(config)
    assert [len(make_units(spec, g)) for g in ("layer", "block", "fused", "module")] == [2, 4, 8, 14]


def test_other_decoders_are_walked_too() -> None:
    small = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, vocab_size=64)
    spec = spec_from_hf_config(AutoConfig.for_model("phi", **small, pad_token_id=0))
    assert [(linear.group, linear.fused) for linear in spec.linears[:6]] == [
        ("attn", "qkv"), ("attn", "qkv"), ("attn", "qkv"), ("attn", "o"), ("mlp", "gateup"), ("mlp", "down")]
    assert (spec.n_layers, spec.n_kv_heads) == (2, 2)
    assert all(linear.bias for linear in spec.linears)


def test_bad_numbers_and_models_are_refused() -> None:
    with pytest.raises(ModelError, match="known: llama"):
        spec_from_numbers("x", "mamba", **SMALL)
    with pytest.raises(ModelError, match="divide"):
        spec_from_numbers("x", "llama", **{**SMALL, "n_kv_heads": 3})
    with pytest.raises(ModelError, match="positive"):
        spec_from_numbers("x", "llama", **{**SMALL, "n_layers": 0})
    gpt2 = AutoConfig.for_model("gpt2", n_layer=1, n_embd=32, n_head=2, vocab_size=64)
    with pytest.raises(ModelError, match="no decoder layers with linear modules"):
        spec_from_hf_config(gpt2)
