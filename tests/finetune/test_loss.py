import pytest
import torch
import transformers

from qra_bo.finetune.data.records import TokenBlocks
from qra_bo.finetune.training.loop import TrainSettings, held_out
from qra_bo.finetune.training.loss import ChunkedHeadLoss, hidden_states, logits_of, token_losses
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


@pytest.mark.parametrize(("family", "given"), [
    ("Granite", {"logits_scaling": 7.0}), ("Cohere", {"logit_scale": 0.25}),
    ("Gemma2", {"final_logit_softcapping": 0.5, "head_dim": 16}),
    ("HyperCLOVAX", {"logits_scaling": 0.125})])  # multiplies where others divide
def test_scaled_and_capped_logits_loss_and_gradient_are_the_models_own(family: str, given: dict[str, float]) -> None:
    if not hasattr(transformers, f"{family}Config"):
        pytest.skip("this transformers lacks the family")
    config, kind = (getattr(transformers, f"{family}{part}") for part in ("Config", "ForCausalLM"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config(vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                            num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=None,
                            eos_token_id=None, **given)).requires_grad_(False)
    ids, norm = torch.arange(12).reshape(1, 12), model.model.norm.weight.requires_grad_()
    logits = model(input_ids=ids).logits
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, hidden_states(model, ids)), logits)
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    largest: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _args, out: largest.append(out.numel() // 97))
    total, _ = token_losses(model, ids, ids, chunk=5)
    assert max(largest) == 5
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(torch.autograd.grad(total, norm), torch.autograd.grad(expected, norm))
    blocks = TokenBlocks(ids.numpy(), ids.numpy())
    result = held_out(model, blocks, TrainSettings(1, logits_chunk=5), torch.device("cpu"))
    assert result.loss == pytest.approx(float(expected.detach()) / 11, rel=1e-5)
    assert max(largest) == 5
