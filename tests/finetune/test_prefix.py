import pytest
import torch

from qra_bo.finetune.models.activations import decoder_layers, layer_inputs, starting_at
from tests.finetune.models import tiny_llama

MODEL, _ = tiny_llama(layers=3)
IDS = torch.arange(20).reshape(2, 10)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_starting_higher_up_gives_the_same_result(index: int) -> None:
    inputs, final = layer_inputs(MODEL, IDS)
    assert len(inputs) == 3
    with starting_at(MODEL, index, inputs[index]), torch.no_grad():
        assert torch.equal(MODEL.get_decoder()(input_ids=IDS).last_hidden_state, final)
        if index:  # what the skipped layers are given is ignored
            assert torch.equal(MODEL.get_decoder()(input_ids=IDS * 0).last_hidden_state, final)
    with torch.no_grad():
        assert torch.equal(MODEL.get_decoder()(input_ids=IDS).last_hidden_state, final)


def test_layers_are_put_back_after_an_error() -> None:
    inputs, _ = layer_inputs(MODEL, IDS)
    before = list(decoder_layers(MODEL))
    with pytest.raises(ZeroDivisionError), starting_at(MODEL, 2, inputs[2]):
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(before, decoder_layers(MODEL), strict=True))
