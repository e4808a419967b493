"""A small random decoder with the real modules, for tests of everything that touches a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.models.load import without_bars
from qra_bo.finetune.training.final import FinalConfig
from qra_bo.space import DecoderSpec
from qra_bo.space.decoder import spec_from_model


def tiny_llama(layers: int = 2, vocab: int = 97, dtype: torch.dtype = torch.float32) -> tuple[Any, DecoderSpec]:
    """A frozen Llama of width 64 and its shapes; the same weights at every call."""
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=vocab, tie_word_embeddings=True, pad_token_id=None,
                         bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(dtype)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data.mul_(3)  # far enough from zero that quantisation and training matter
    model.config.use_cache = False
    return model, spec_from_model(model, "tiny")


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model in training or in evaluation, as it is, without a graph."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def tiny_gemma3_with_vision(folder: Path, *, original: bool = True, tied: bool = True) -> Any:
    """Save a Gemma 3 of 6 layers with a vision part and return it; ``original``: with the names of the hub's files,
    else with those of the modules of transformers."""
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6, "num_attention_heads": 4}
    text = {**sizes, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32, "vocab_size": 320,
            "sliding_window": 16, "max_position_embeddings": 256, "tie_word_embeddings": tied,
            "initializer_range": 0.08, "pad_token_id": 256, "bos_token_id": None, "eos_token_id": 1}
    config = Gemma3Config(text_config=text, tie_word_embeddings=tied, eos_token_id=[1, 257], vision_config={
        **sizes, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16, "vision_use_head": False})
    with torch.random.fork_rng(devices=[]), without_bars():
        torch.manual_seed(0)
        model = Gemma3ForConditionalGeneration(config).eval()
        for parameter in model.parameters():  # buffers stay in fp32, as in a model that was loaded
            parameter.data = parameter.data.to(torch.bfloat16)
        model.save_pretrained(folder, save_original_format=original)
    byte_tokenizer().save_pretrained(folder)
    return model


FINAL = FinalConfig(steps=None, epochs=1.0, max_steps=None, validate_every=None, keep="best", patience=None)


def final_options(**changes: Any) -> dict[str, Any]:
    """Return the options of a final fine-tune."""
    return FINAL.with_changes(**changes).model_dump()


def failing(function: Callable[..., Any], at: int, error: Callable[[], BaseException]) -> Callable[..., Any]:
    """Return ``function`` with an error, a new one, at its call number ``at``, from 1."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error()
        return function(*args, **kwargs)

    return wrapped
