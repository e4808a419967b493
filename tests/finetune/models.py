"""A small random decoder with the real modules, for tests of everything that touches a model."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

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
