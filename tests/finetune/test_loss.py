import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from qra_bo.finetune.training.loss import ChunkedHeadLoss, hidden_states, logits_of, plain_head, token_losses
from tests.finetune.models import tiny_llama


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunked_loss_and_gradient_equal_pytorchs(chunk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float32, requires_grad=True)
    weight, bias = torch.randn(11, 5, generator=generator), torch.randn(11, generator=generator)
    targets = torch.tensor([1, -100, 0, 10, 3, -100, 7])
    head = torch.nn.Linear(5, 11)
    head.weight.data, head.bias.data = weight, bias
    ours = ChunkedHeadLoss.apply(hidden, head, targets, chunk)
    (gradient,) = torch.autograd.grad(3.0 * ours, hidden)
    twin = hidden.detach().clone().requires_grad_()
    theirs = torch.nn.functional.cross_entropy(twin @ weight.T + bias, targets, reduction="sum", ignore_index=-100)
    (expected,) = torch.autograd.grad(3.0 * theirs, twin)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)


def test_token_losses_are_the_models_own() -> None:
    model, _ = tiny_llama()
    ids = torch.arange(24).reshape(2, 12) % 97
    labels = ids.clone()
    labels[0, :4] = -100
    total, count = token_losses(model, ids, labels, chunk=5)
    assert count == int((labels[:, 1:] != -100).sum()) == 19
    assert float(total) / count == pytest.approx(float(model(input_ids=ids, labels=labels).loss), abs=1e-5)


def test_a_soft_cap_between_head_and_loss_is_honoured() -> None:
    model, _ = tiny_llama()
    ids = torch.arange(12).reshape(1, 12)
    model.config.final_logit_softcapping = 30.0  # the config says so: the model's own forward has to be asked
    total, _ = token_losses(model, ids, ids, chunk=5)
    logits = model(input_ids=ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.reshape(11, -1), ids[:, 1:].reshape(-1), reduction="sum")
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize(("config", "kind", "given"), [
    (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 7.0}),
    (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
    (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 0.5, "head_dim": 16})])
def test_logits_of_hidden_states_are_the_models_own(config: type, kind: type, given: dict[str, float]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config(vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                            num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=None,
                            eos_token_id=None, **given))
    assert not plain_head(model)
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, hidden_states(model, ids)), model(input_ids=ids).logits)
