"""Cross-entropy over a large vocabulary in chunks, and gradients of the dense model's linears on calibration text."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.finetune.models.activations import recomputes
from qra_bo.utils.errors import ModelError


class ChunkedHeadLoss(torch.autograd.Function):
    """Sum of next-token losses through a frozen head, with the logits of one chunk alive at a time.

    Only the gradient of the hidden states is kept; it is formed in the forward pass. The head is a linear layer, or has
    an ``input_gradient`` of its own, as one that is never unpacked as a whole.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Module, targets: Tensor, chunk: int, factor: float = 1.0,
                cap: float = 0.0) -> Tensor:
        """``hidden`` is ``n x d``, ``head`` maps ``d`` to ``v``, ``targets`` are ``n`` (-100: no loss); ``factor`` and
        ``cap``: see ``scale_and_cap``."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.zeros_like(hidden) if hidden.requires_grad else None
        for start in range(0, len(hidden), chunk):
            part, goal = hidden[start:start + chunk], targets[start:start + chunk]
            logits = scaled(head(part), factor, cap)
            log_p = torch.log_softmax(logits.float(), dim=-1)
            shift = logits[:, :1].float() - log_p[:, :1] if cap else None  # what log_softmax took away
            del logits
            valid = goal != -100
            picked = goal.clamp(min=0).unsqueeze(1)
            total += -(log_p.gather(1, picked).squeeze(1) * valid).sum()
            if gradient is not None:
                slope = None if shift is None else (log_p + shift).div_(cap).square_().neg_().add_(1.0)
                p = log_p.exp_()
                p.scatter_add_(1, picked, torch.full_like(picked, -1.0, dtype=p.dtype))
                p *= valid.unsqueeze(1)
                if slope is not None:
                    p *= slope
                    del slope
                if factor != 1.0:
                    p *= factor
                gradient[start:start + chunk] = input_gradient(head, p)
                del p
            del log_p  # freed before the next chunk's logits are made
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        passed = None if gradient is None else gradient * grad_outputs[0].to(gradient.dtype)
        return passed, None, None, None, None, None


def input_gradient(head: Any, gradient: Tensor) -> Tensor:
    """Return the gradient of a frozen head's input, ``n x d``, from that of its logits, ``n x v`` in fp32."""
    own = getattr(head, "input_gradient", None)
    product: Tensor = gradient.to(head.weight.dtype) @ head.weight if own is None else own(gradient)
    return product


def scale_and_cap(model: Any) -> tuple[float, float]:
    """Return the factor by which a base multiplies the logits of its head, and their soft cap after that; 0 for none.
    """
    config = model.config.get_text_config()
    scale, multiplier, divisor, cap = (getattr(config, name, None) or 0.0 for name in (
        "logit_scale", "lm_head_multiplier", "logits_scaling", "final_logit_softcapping"))
    if config.model_type == "hyperclovax":  # it multiplies by what Granite and MiniCPM3 divide by
        multiplier, divisor = divisor, 1.0
    return (scale or 1.0) * (multiplier or 1.0) / (divisor or 1.0), cap


def scaled(logits: Tensor, factor: float, cap: float) -> Tensor:
    """Multiply and cap ``logits`` as ``scale_and_cap`` says, in place."""
    if factor != 1.0:
        logits.mul_(factor)
    return logits.div_(cap).tanh_().mul_(cap) if cap else logits


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Return logits, ``n x vocabulary``, of final hidden states, ``n x d``, with the base's own scale and soft cap; no
    gradient may be asked for."""
    return scaled(model.get_output_embeddings()(hidden), *scale_and_cap(model))


def check_isolation(model: Any, length: int) -> None:
    """Refuse to isolate records in rows of ``length`` tokens where the decoder can't.

    Raises:
        ModelError: If its attention has a window shorter than a row, which a mask replaces, or takes no positions.
    """
    known = inspect.signature(model.get_decoder().forward).parameters
    if "position_ids" not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise ModelError("train.packing=isolated gives every record its own positions, and this decoder takes no "
                         "position_ids; use train.packing=joined")
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window is not None and length > window:
        raise ModelError(f"train.packing=isolated masks whole rows, and this decoder's attention has a window of "
                         f"{window} tokens, shorter than train.length={length}; use train.packing=joined, or a "
                         f"train.length of at most {window}")


def isolating(model: Any, positions: Tensor | None) -> dict[str, Tensor]:
    """Return the decoder's arguments that keep attention within records.

    ``positions``, ``b x length``, begin with 0 in every record; ``None`` leaves attention causal over whole rows. The
    mask, ``b x 1 x length x length``, is additive and in the type in which attention is computed, so that all layers
    share it: SDPA turns a boolean one into a copy for every layer.
    """
    if positions is None:
        return {}
    decoder = model.get_decoder()
    # the type of a decoder is that of its first parameter, and a packed embedding before it has none
    activations = getattr(model.get_input_embeddings(), "output_dtype", decoder.dtype)
    dtype = torch.float32 if "fp32" in decoder.config._attn_implementation else activations
    record = (positions == 0).cumsum(-1)
    allowed = (record[:, :, None] == record[:, None, :]).tril_().unsqueeze(1)
    mask = torch.full(allowed.shape, torch.finfo(dtype).min, dtype=dtype, device=positions.device)
    return {"position_ids": positions, "attention_mask": mask.masked_fill_(allowed, 0.0)}


def hidden_states(model: Any, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return the output of the decoder stack after its final norm, ``b x length x d``."""
    out: Tensor = model.get_decoder()(input_ids=input_ids, use_cache=False,
                                      **isolating(model, positions)).last_hidden_state
    return out


def token_losses(model: Any, input_ids: Tensor, labels: Tensor, chunk: int,
                 positions: Tensor | None = None) -> tuple[Tensor, int]:
    """Return the summed next-token loss (differentiable) and the number of target tokens of one batch.

    ``input_ids`` and ``labels`` are ``b x length``; labels are -100 where no loss is taken, and shifted here. The
    logits of ``chunk`` tokens are alive at once. ``positions``, ``b x length``, isolate records; see ``isolating``.
    """
    targets = labels[:, 1:].reshape(-1)
    count = int((targets != -100).sum())
    hidden = hidden_states(model, input_ids, positions)[:, :-1].reshape(targets.numel(), -1)
    total: Tensor = ChunkedHeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden, model.get_output_embeddings(), targets, chunk, *scale_and_cap(model))
    return total, count


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Sequences of the training split on which sensitivities are measured.

    ``ids`` and ``labels`` are ``n x length``, labels -100 where no loss is taken; ``batch`` sequences go backward at a
    time, with the logits of ``logits_chunk`` tokens alive at once.
    """

    ids: Tensor
    labels: Tensor
    batch: int
    logits_chunk: int

    def parts(self, n: int) -> list[tuple[Tensor, Tensor]]:
        """Return ids and labels, ``n`` sequences at a time."""
        return list(zip(torch.split(self.ids, n), torch.split(self.labels, n), strict=True))


def each_gradient(model: Any, names: Iterable[str], ids: Tensor, labels: Tensor, chunk: int,
                  use: Callable[[str, Tensor, Tensor], None]) -> None:
    """Send a batch (``b x length``) through the dense model, forward and backward.

    The mean loss per token is differentiated; the model is left in training mode. ``use`` is called with a linear's
    name, the gradient of its output (``t x out``) and its input (``t x in``), both in fp32: the weight's gradient is
    the first's transpose times the second. With gradient checkpointing inputs wait in host memory.

    Raises:
        ModelError: If a gradient is not finite.
    """
    device = ids.device
    away = torch.device("cpu") if recomputes(model) else device
    last: list[Tensor] = []  # an input and its copy, which several linears share

    def kept(x: Tensor) -> Tensor:
        if not last or last[0] is not x:
            last[:] = x, x.detach().reshape(-1, x.shape[-1]).to(away)
        return last[1]

    def hook_of(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                x = kept(args[0])
                output.register_hook(lambda gradient: passed(gradient, x))  # type: ignore[no-untyped-call]

        def passed(gradient: Tensor, x: Tensor) -> None:
            if not torch.isfinite(gradient).all():  # a decomposition would fail, or give directions of nothing
                raise ModelError(f"the gradient of {name} is not finite in {str(gradient.dtype).removeprefix('torch.')}"
                                 ": this model's activations or gradients exceed the range of that type, or its "
                                 "weights are damaged; use another dtype, such as dtype=bfloat16 or dtype=float32")
            use(name, gradient.reshape(-1, gradient.shape[-1]).float() / max(1, count), x.to(device).float())

        return hook

    handles = [model.get_submodule(name).register_forward_hook(hook_of(name)) for name in names]
    embedding = model.get_input_embeddings()
    handles.append(embedding.register_forward_hook(lambda _m, _a, out: out.requires_grad_(True)))
    model.train()
    try:
        total, count = token_losses(model, ids, labels, chunk)
        total.backward()  # type: ignore[no-untyped-call]  # fp16 would lose the gradients of a mean
    finally:
        last.clear()
        for handle in handles:
            handle.remove()
