"""A checkpoint with a vision part is planned, loaded and trained as a model of text alone."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForMultimodalLM, Gemma3ForCausalLM, LlamaForCausalLM

from bench.memory.trace import StepTracer
from qra_bo.config import load_config, make_spec
from qra_bo.config.derive import hf_config
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.models.load import load_base, without_bars
from qra_bo.space.decoder import spec_from_model
from tests.finetune.models import tiny_gemma3_with_vision

IDS = torch.arange(3, 43)[None]
"""Longer than the sliding window."""


def configuration(folder: Path) -> Any:
    return load_config(["task=memory", "+model=hf", f"model.path={folder}"])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.float().eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("original", "first"), [(True, "language_model.model."), (False, "model.language_model.")])
def test_the_text_decoder_is_loaded_alone(tmp_path: Path, original: bool, first: str, tied: bool) -> None:
    whole = tiny_gemma3_with_vision(tmp_path, original=original, tied=tied)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert f"{first}embed_tokens.weight" in file.keys()  # noqa: SIM118 (no mapping)
    model, _ = load_base(configuration(tmp_path).model)
    assert isinstance(model, Gemma3ForCausalLM)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any("vision" in name for name, _ in model.named_modules())
    assert model.config.tie_word_embeddings is tied
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_plan_and_loader_agree_and_say_once_what_is_left_out(tmp_path: Path, tied: bool,
                                                             caplog: pytest.LogCaptureFixture) -> None:
    tiny_gemma3_with_vision(tmp_path, tied=tied)
    config = configuration(tmp_path)
    with caplog.at_level(logging.WARNING):
        planned, (model, _) = make_spec(config), load_base(config.model)
    [message] = [record.getMessage() for record in caplog.records]
    assert "the decoder alone (gemma3_text) is planned, loaded and trained, and parts for images or sound" in message
    assert planned == spec_from_model(model, planned.name) == StepTracer(planned, hf_config(config)).spec
    assert (planned.family, planned.tied) == ("gemma3_text", tied)
    assert model.config.eos_token_id == [1, 257]  # those of the whole


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_other_families_with_a_vision_part(tmp_path: Path, family: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 16, **({"model_type": "clip_vision_model"}
                                                              if family == "llava" else {})}
    with torch.random.fork_rng(devices=[]), without_bars():
        whole = AutoModelForMultimodalLM.from_config(AutoConfig.for_model(
            family, text_config={**sizes, "vocab_size": 300, "num_key_value_heads": 1, "pad_token_id": 0,
                                 "model_type": "llama"}, vision_config=vision)).eval()
        whole.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model, _ = load_base(configuration(tmp_path).model)
    assert isinstance(model, LlamaForCausalLM)
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=1e-5)
