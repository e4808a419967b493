import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, GPTNeoConfig, MptConfig, PretrainedConfig

from qra_bo.finetune.models.activations import decoder_layers, run_layer, starting_at
from tests.finetune.models import tiny_llama

MODEL, _ = tiny_llama(layers=3)
IDS = torch.arange(20).reshape(2, 10)


def layer_inputs() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Every layer's input and the final hidden states."""
    inputs: list[torch.Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
               for layer in decoder_layers(MODEL)]
    with torch.no_grad():
        final = MODEL.get_decoder()(input_ids=IDS).last_hidden_state
    for handle in handles:
        handle.remove()
    return inputs, final


@torch.no_grad()
def test_layers_run_one_by_one() -> None:
    inputs, final = layer_inputs()
    hidden, last = torch.empty(0), torch.empty(0)
    for index, expected in enumerate(inputs):
        assert index == 0 or torch.equal(hidden, expected)
        hidden, last = run_layer(MODEL, IDS, index, hidden)
    assert torch.equal(last, final)
    assert torch.equal(layer_inputs()[1], final)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_starting_higher_up_gives_the_same_result(index: int) -> None:
    inputs, final = layer_inputs()
    assert len(inputs) == 3
    with starting_at(MODEL, index, inputs[index]), torch.no_grad():
        assert torch.equal(MODEL.get_decoder()(input_ids=IDS).last_hidden_state, final)
        if index:  # what the skipped layers are given is ignored
            assert torch.equal(MODEL.get_decoder()(input_ids=IDS * 0).last_hidden_state, final)
    with torch.no_grad():
        assert torch.equal(MODEL.get_decoder()(input_ids=IDS).last_hidden_state, final)


def test_layers_are_put_back_after_an_error() -> None:
    inputs, _ = layer_inputs()
    before = list(decoder_layers(MODEL))
    with pytest.raises(ZeroDivisionError), starting_at(MODEL, 2, inputs[2]):
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(before, decoder_layers(MODEL), strict=True))


@pytest.mark.parametrize("config", [
    FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4),
    BloomConfig(vocab_size=64, hidden_size=32, n_layer=3, n_head=4),
    MptConfig(vocab_size=64, d_model=32, n_layers=3, n_heads=4, max_seq_len=16),
    GPTNeoConfig(vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
                 max_position_embeddings=16, bos_token_id=0, eos_token_id=0)], ids=lambda config: config.model_type)
def test_layers_that_return_tuples(config: PretrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        final = model(input_ids=IDS, use_cache=False).logits
        below, _ = run_layer(model, IDS, 0, torch.empty(0))
        with starting_at(model, 1, below):
            assert torch.equal(model(input_ids=IDS, use_cache=False).logits, final)
