"""Cross-entropy over a large vocabulary in chunks, so that the full logits are never alive at once."""

from typing import Any

import torch
from torch import Tensor


class ChunkedHeadLoss(torch.autograd.Function):
    """Sum of next-token losses through a frozen head; its gradient is formed in the forward pass.

    The head takes no gradient, so that only the gradient of the hidden states is kept: it is formed from each chunk's
    logits at once.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int) -> Tensor:
        """``hidden`` is ``n x d``, ``weight`` ``v x d``, ``targets`` ``n`` (-100: no loss)."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.zeros_like(hidden) if hidden.requires_grad else None
        for start in range(0, len(hidden), chunk):
            part, goal = hidden[start:start + chunk], targets[start:start + chunk]
            logits = torch.nn.functional.linear(part, weight, bias)
            log_p = torch.log_softmax(logits.float(), dim=-1)
            del logits
            valid = goal != -100
            picked = goal.clamp(min=0).unsqueeze(1)
            total += -(log_p.gather(1, picked).squeeze(1) * valid).sum()
            if gradient is not None:
                p = log_p.exp_()
                p.scatter_add_(1, picked, torch.full_like(picked, -1.0, dtype=p.dtype))
                p *= valid.unsqueeze(1)
                gradient[start:start + chunk] = p.to(weight.dtype) @ weight
                del p
            del log_p  # freed before the next chunk's logits are made
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        scaled = None if gradient is None else gradient * grad_outputs[0].to(gradient.dtype)
        return scaled, None, None, None, None


def plain_head(model: Any) -> bool:
    """Whether logits are ``head(hidden)``, without a soft cap or a scale."""
    config = model.config.get_text_config()
    return not any(getattr(config, name, None) for name in
                   ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier"))


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Return logits, ``n x vocabulary``, of final hidden states, ``n x d``, with the base's own scale and soft cap."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)
    for name in ("logit_scale", "lm_head_multiplier"):
        if getattr(config, name, None):
            logits = logits * getattr(config, name)
    if getattr(config, "logits_scaling", None):
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def hidden_states(model: Any, input_ids: Tensor) -> Tensor:
    """Return the output of the decoder stack after its final norm, ``b x length x d``."""
    out: Tensor = model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    return out


def token_losses(model: Any, input_ids: Tensor, labels: Tensor, chunk: int) -> tuple[Tensor, int]:
    """Return the summed next-token loss (differentiable) and the number of target tokens of one batch.

    Args:
        model: A causal language model of transformers.
        input_ids: ``b x length``.
        labels: ``b x length``, -100 where no loss is taken; shifted here.
        chunk: Tokens whose logits are alive at once.
    """
    targets = labels[:, 1:].reshape(-1)
    count = int((targets != -100).sum())
    if plain_head(model):
        hidden = hidden_states(model, input_ids)[:, :-1].reshape(targets.numel(), -1)
        head = model.get_output_embeddings()
        total: Tensor = ChunkedHeadLoss.apply(hidden, head.weight, head.bias, targets, chunk)  # type: ignore[no-untyped-call]
        return total, count
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.reshape(targets.numel(), -1), targets, reduction="sum",
                                             ignore_index=-100), count
