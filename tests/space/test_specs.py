"""Specs told from numbers equal those of the real modules on the meta device."""

from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qra_bo.config import load_config
from qra_bo.config.overrides import options
from qra_bo.space import make_units
from qra_bo.space.decoder import (
    FAMILIES,
    MIXTURES,
    spec_from_hf_config,
    spec_from_model,
    spec_from_numbers,
    with_adapters,
)
from qra_bo.utils.errors import ModelError

SMALL: dict[str, Any] = dict(n_layers=2, hidden_size=64, intermediate_size=160, n_heads=4, n_kv_heads=2, head_dim=16,
                             vocab_size=512, tied=True, attention_bias=False, n_experts=0, experts_per_token=0)
NUMBERS = tuple(SMALL)
EXPERTS = {"n_experts": 6, "experts_per_token": 2}


def config_of(family: str, n: dict[str, Any]) -> Any:
    values = dict(num_hidden_layers=n["n_layers"], hidden_size=n["hidden_size"],
                  intermediate_size=n["intermediate_size"], num_attention_heads=n["n_heads"],
                  num_key_value_heads=n["n_kv_heads"], head_dim=n["head_dim"], vocab_size=n["vocab_size"],
                  tie_word_embeddings=n["tied"], pad_token_id=0, attention_bias=n["attention_bias"])
    if family in ("mistral", "qwen2", "mixtral"):
        values.pop("attention_bias")
    if family in MIXTURES:
        values |= {"num_local_experts" if family == "mixtral" else "num_experts": n["n_experts"],
                   "num_experts_per_tok": n["experts_per_token"]}
    if family == "qwen3_moe":
        values["moe_intermediate_size"] = n["intermediate_size"]
    return AutoConfig.for_model(family, **values)


def models() -> list[str]:
    return [name for name in options()["model"] if name != "hf"]


@cache
def read(name: str) -> dict[str, Any]:
    return dict(load_config([f"+model={name}", "task=memory"]).model)


@pytest.mark.parametrize(("family", "tied", "bias"), [
    *((family, tied, family in ("qwen2", "gpt_neox")) for family in FAMILIES for tied in (True, False)),
    *((family, True, True) for family in ("llama", "qwen3", "gemma", "seed_oss"))])
def test_numbers_equal_the_meta_model(family: str, tied: bool, bias: bool) -> None:
    n = {**SMALL, "tied": tied, "attention_bias": bias, **(EXPERTS if family in MIXTURES else {})}
    if family == "gpt_neox":
        n["n_kv_heads"] = n["n_heads"]
    assert spec_from_numbers("x", family, **n) == spec_from_hf_config(config_of(family, n), "x")


@pytest.mark.parametrize("name", models())
def test_model_files_match_their_architectures(name: str) -> None:
    data = read(name)
    n = {key: data[key] for key in NUMBERS}
    spec = spec_from_numbers(data["name"], data["family"], **n)
    # All layers are alike: two of them prove the shapes, and the arithmetic of the rest is exact.
    two = {**n, "n_layers": 2}
    assert spec_from_numbers("x", data["family"], **two) == spec_from_hf_config(config_of(data["family"], two), "x")
    layer = 4 + 2 * n["n_experts"] if n["n_experts"] else 4 if data["family"] == "phi3" else 7
    assert len(spec.linears) == layer * n["n_layers"]
    assert data["name"] == name


PUBLISHED = {"smollm2_135m": 134_515_008, "llama2_7b": 6_738_415_616, "llama2_70b": 68_976_648_192,
             "llama3_1_8b": 8_030_261_248, "llama3_2_1b_instruct": 1_235_814_400, "llama3_2_3b": 3_212_749_824,
             "qwen2_5_0_5b_instruct": 494_032_768, "qwen2_5_1_5b_instruct": 1_543_714_304, "qwen2_5_3b": 3_085_938_688,
             "qwen2_5_7b": 7_615_616_512, "qwen2_5_14b_instruct": 14_770_033_664,
             "qwen2_5_32b_instruct": 32_763_876_352,
             "qwen3_0_6b": 596_049_920, "qwen3_1_7b": 1_720_574_976, "qwen3_4b": 4_022_468_096,
             "qwen3_8b": 8_190_735_360, "qwen3_14b": 14_768_307_200, "qwen3_32b": 32_762_123_264,
             "mistral_7b_instruct": 7_248_023_552, "gemma3_1b_instruct": 999_885_952,
             "gemma3_4b_instruct": 3_880_263_168, "gemma3_12b_instruct": 11_766_034_176,
             "gemma3_27b_instruct": 27_009_346_304, "phi4": 14_659_507_200, "phi3_5_mini": 3_821_079_552,
             "qwen3_30b_a3b": 30_532_122_624, "mixtral_8x7b_instruct": 46_702_792_704,
             "olmoe_1b_7b_instruct": 6_919_161_856, "smollm3_3b": 3_075_098_624,
             "seed_oss_36b_instruct": 36_151_104_512}
"""Parameters, those of tied heads counted once: the wheel's GGUF, KerasHub's presets, and totals of safetensors on the
hub that public repositories quote (Llama of 1 B, 3 B and 70 B; Qwen2.5 of 1.5, 7 and 14 B; Phi; Gemma 3 of 4, 12 and
27 B, less their vision part; mixtures)."""
VARIANTS = {"llama2_7b_chat": "llama2_7b", "llama3_1_8b_instruct": "llama3_1_8b", "llama3_2_3b_instruct": "llama3_2_3b",
            "qwen2_5_3b_instruct": "qwen2_5_3b", "qwen2_5_7b_instruct": "qwen2_5_7b",
            "qwen2_5_coder_0_5b_instruct": "qwen2_5_0_5b_instruct",
            "qwen2_5_coder_1_5b_instruct": "qwen2_5_1_5b_instruct", "qwen2_5_coder_7b_instruct": "qwen2_5_7b"}
"""Instruction-tuned models by the base model that they share the architecture with."""


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    data = read(name)
    spec = spec_from_numbers(name, data["family"], **{key: data[key] for key in NUMBERS})
    assert spec.linear_numel + spec.other_numel == parameters


def test_every_model_has_a_published_count() -> None:
    assert sorted([*PUBLISHED, *VARIANTS, "tiny"]) == sorted(models())
    for variant, base in VARIANTS.items():
        one, other = read(variant), read(base)
        assert [one[key] for key in NUMBERS] == [other[key] for key in NUMBERS]
        assert one["path"] != other["path"]


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


@pytest.mark.parametrize(("family", "changes", "reason"), [
    ("qwen2_moe", {"num_experts": 2, "moe_intermediate_size": 32}, "layers of experts that are not trained here"),
    ("gpt_oss", {"num_local_experts": 2}, "layers of experts that are not trained here"),
    ("qwen3_moe", {"num_experts": 2, "moe_intermediate_size": 32, "mlp_only_layers": [0]}, "in 1 of its layers alone"),
    ("falcon_h1", {}, "layers of Mamba")])
def test_decoders_of_other_layers_are_refused(family: str, changes: dict[str, Any], reason: str) -> None:
    small = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                 num_hidden_layers=2, vocab_size=64, pad_token_id=0)
    with pytest.raises(ModelError, match=f"{family!r} has .*{reason}"):
        spec_from_hf_config(AutoConfig.for_model(family, **small, **changes))


@pytest.mark.parametrize("changes", [
    {"hidden_size": -64}, {"hidden_size": 0}, {"hidden_size": 10**30}, {"num_key_value_heads": 0}, {"head_dim": 0},
    {"intermediate_size": 0}, {"vocab_size": 0}, {"num_hidden_layers": 100_000}, {"num_hidden_layers": 0}])
def test_sizes_of_no_model_are_refused(changes: dict[str, int]) -> None:
    small = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, vocab_size=64,
                 bos_token_id=None, eos_token_id=None)
    with pytest.raises(ModelError, match="=".join(map(str, *changes.items()))):
        spec_from_hf_config(AutoConfig.for_model("llama", **{**small, **changes}))


@pytest.mark.parametrize("experts", ["none", "each"])
def test_experts_are_units_of_their_layer(experts: str) -> None:
    spec = with_adapters(spec_from_numbers("x", "qwen3_moe", **{**SMALL, **EXPERTS}), experts)
    assert [len(make_units(spec, g)) for g in ("layer", "block", "fused", "module")] == [2, 4, 8, 12]
    attention, rest = make_units(spec, "block")[:2]
    assert (len(attention.adapted), len(rest.adapted)) == (4, 12 if experts == "each" else 0)
    assert spec.active_numel == spec.linear_numel - sum(m.numel for m in spec.linears if m.expert) * 2 // 3


@pytest.mark.parametrize(("changes", "reason"), [
    ({"hidden_act": "wiggle"}, "it knows no 'wiggle'"), ({"hidden_act": ""}, "it knows no ''"),
    ({"hidden_act": "Silu"}, "it knows no 'Silu'"), ({"hidden_act": "SILU"}, "it knows no 'SILU'"),
    ({"attn_implementation": "psychic"}, "psychic"), ({"attn_implementation": "flash_9"}, "flash_9"),
    *(({"rope_parameters": {"rope_type": kind, "rope_theta": 1e4}}, f"it knows no '{kind}'")
      for kind in ("spiral", "", "YARN", "default2", "llama4"))])
def test_parts_that_transformers_does_not_know_are_refused(changes: dict[str, Any], reason: str) -> None:
    small = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, vocab_size=64,
                 bos_token_id=None, eos_token_id=None)
    with pytest.raises(ModelError, match=rf"can be built of a 'llama' configuration \(.*{reason}.*\)"):
        spec_from_hf_config(AutoConfig.for_model("llama", **small, **changes))


def test_a_vision_part_beside_the_decoder_is_refused() -> None:
    small = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1)
    text = dict(**small, num_key_value_heads=1, head_dim=16, vocab_size=64, pad_token_id=0)
    with pytest.raises(ModelError, match=r"'gemma3' has layers outside its text decoder \(model\.vision_tower.*"
                                         "Give a model of text alone"):
        spec_from_hf_config(AutoConfig.for_model("gemma3", text_config=text, vision_config=small))


def test_a_decoder_of_unlike_layers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'gemma4_text' has layers that differ in head_dim, .*like layers"):
        spec_from_hf_config(AutoConfig.for_model("gemma4_text", hidden_size=32, intermediate_size=64,
                                                 num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2,
                                                 vocab_size=64, vocab_size_per_layer_input=64, pad_token_id=0))


@pytest.mark.parametrize(("family", "changes", "width"), [
    ("opt", {"hidden_size": 32, "ffn_dim": 80, "word_embed_proj_dim": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2}, 80),
    ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}, 128)])
def test_decoders_that_name_their_width_otherwise(family: str, changes: dict[str, int], width: int) -> None:
    spec = spec_from_hf_config(AutoConfig.for_model(family, vocab_size=64, pad_token_id=0, **changes))
    assert (spec.intermediate_size, spec.n_layers, spec.head_dim) == (width, 2, 16)


def test_bad_numbers_and_models_are_refused() -> None:
    with pytest.raises(ModelError, match="known: llama"):
        spec_from_numbers("x", "mamba", **SMALL)
    with pytest.raises(ModelError, match="belong to the families mixtral"):
        spec_from_numbers("x", "llama", **{**SMALL, **EXPERTS})
    with pytest.raises(ModelError, match="divide"):
        spec_from_numbers("x", "llama", **{**SMALL, "n_kv_heads": 3})
    with pytest.raises(ModelError, match="positive"):
        spec_from_numbers("x", "llama", **{**SMALL, "n_layers": 0})
    gpt2 = AutoConfig.for_model("gpt2", n_layer=1, n_embd=32, n_head=2, vocab_size=64)
    with pytest.raises(ModelError, match="no decoder layers with linear modules"):
        spec_from_hf_config(gpt2)
