"""What is done to every base before anything is trained on it."""

import torch
from transformers import GraniteConfig, GraniteForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

from qra_bo.finetune.models.load import without_dropout


def test_a_bases_own_dropout_draws_nothing() -> None:
    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    for model in (GraniteForCausalLM(GraniteConfig(attention_dropout=0.5, **shape)),
                  Starcoder2ForCausalLM(Starcoder2Config(attention_dropout=0.3, residual_dropout=0.5,
                                                         embedding_dropout=0.5, **shape))):
        model.train()
        ids = torch.arange(12).reshape(1, 12)
        with torch.no_grad():
            assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
            without_dropout(model)
            assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
