"""Gradients of the dense model's linears on the calibration text."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.finetune.training.loss import token_losses


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Sequences of the training split on which sensitivities and some adapter initialisations are measured.

    Args:
        ids: Token ids, ``n x length``.
        labels: ``n x length``, -100 where no loss is taken.
        batch: Sequences that go backward at a time.
        logits_chunk: Tokens whose logits are alive at once.
    """

    ids: Tensor
    labels: Tensor
    batch: int
    logits_chunk: int

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return ids and labels, ``batch`` sequences at a time."""
        return list(zip(torch.split(self.ids, self.batch), torch.split(self.labels, self.batch), strict=True))


def each_gradient(model: Any, names: Iterable[str], text: CalibrationText, device: torch.device,
                  use: Callable[[str, Tensor, Tensor], None], done: Callable[[int, int], None]) -> int:
    """Send every batch of ``text`` forward and backward; the mean loss per token of each batch is differentiated.

    Args:
        model: The dense model without adapters; it is left in training mode.
        names: Of the linears.
        text: The sequences.
        device: Where the model is.
        use: Called with a linear, the gradient of its output (``t x out``) and its input (``t x in``), both in fp32:
            the weight's gradient is the first's transpose times the second.
        done: Called with the number of batches done and that of all.

    Returns:
        The tokens that went forward and backward.
    """
    handles = [model.get_submodule(name).register_forward_hook(_hook_of(name, use)) for name in names]
    embedding = model.get_input_embeddings()
    handles.append(embedding.register_forward_hook(lambda _m, _a, out: out.requires_grad_(True)))
    model.train()
    batches = text.batches()
    try:
        for through, (ids, labels) in enumerate(batches, start=1):
            total, count = token_losses(model, ids.to(device), labels.to(device), text.logits_chunk)
            (total / max(1, count)).backward()  # type: ignore[no-untyped-call]
            done(through, len(batches))
    finally:
        for handle in handles:
            handle.remove()
    return text.ids.numel()


def _hook_of(name: str, use: Callable[[str, Tensor, Tensor], None]) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach().reshape(-1, args[0].shape[-1])

        def on_gradient(gradient: Tensor) -> None:
            use(name, gradient.reshape(-1, gradient.shape[-1]).float(), x.float())

        if output.requires_grad:
            output.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    return hook
