"""Gradients of the dense model's linears on a text, and the directions of their inputs in which the loss falls most."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qra_bo.finetune.adapters.lowrank import leading
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.training.loss import token_losses
from qra_bo.oracle.protocol import Progress

SKETCH_ROWS = 128
"""Rows of a gradient's sketch for up to half as many directions; two for every direction beyond."""


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Of the training split: what sensitivities are measured on, and some starts of adapters.

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
        """Ids and labels, ``batch`` sequences at a time."""
        return list(zip(torch.split(self.ids, self.batch), torch.split(self.labels, self.batch), strict=True))


def each_gradient(model: Any, names: Iterable[str], text: CalibrationText, device: torch.device,
                  use: Callable[[str, Tensor, Tensor], None], done: Callable[[int, int], None]) -> int:
    """Send every batch of ``text`` forward and backward; the mean loss per token of each is what is differentiated.

    Args:
        model: The dense model without adapters; it is left in training mode.
        names: Of the linears.
        text: See there.
        device: Where the model is.
        use: Called with a linear, the gradient of its output (``t x out``) and its input (``t x in``), both in fp32:
            the weight's gradient is the first's transpose times the second.
        done: Called with the number of batches that are through and that of all.

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


def gradient_directions(bank: LayerBank, names: Sequence[str], text: CalibrationText, rank: int,
                        progress: Progress | None) -> dict[str, Tensor]:
    """Leading right singular vectors of the dense weights' summed gradients, about, ``k x in``, ``k`` at most ``rank``.

    An adapter with B = 0 learns fastest along these at first. LoRA-GA (arXiv 2407.05000) starts both factors from the
    gradient's singular vectors and takes their product off the weights; here B is 0 and the base stays what it is. No
    gradient of a weight is kept: a sketch of its rows is, ``S G`` with a Gaussian ``S`` (Halko, Martinsson and Tropp,
    2011), or itself where that has no more rows. What is read for one rank begins what is read for a larger one, up to
    half of ``SKETCH_ROWS``.

    Args:
        bank: The model's linears; its dense weights are installed.
        names: Of the linears.
        text: See there.
        rank: Directions wanted; fewer where a linear is narrower.
        progress: Told after every batch.
    """
    sketches: dict[str, Tensor] = {}

    def add(name: str, gradient: Tensor, x: Tensor) -> None:
        mixer = _mixer(name, gradient.shape[1], max(SKETCH_ROWS, 2 * rank)).to(gradient.device)
        part = ((gradient @ mixer).t() @ x).cpu()  # a device is not planned to hold all of them
        sketches[name] = sketches[name] + part if name in sketches else part

    def done(through: int, batches: int) -> None:
        if progress is not None:
            progress("initialise", through, batches)

    bank.restore_dense()
    each_gradient(bank.model, names, text, bank.device, add, done)
    return {name: leading(sketch, min(rank, *sketch.shape)).down for name, sketch in sketches.items()}


def _mixer(name: str, rows: int, columns: int) -> Tensor:
    """``rows x columns``, drawn by the linear's name alone; the identity where that is no larger."""
    if rows <= columns:
        return torch.eye(rows)
    draws = np.random.default_rng(np.random.SeedSequence([*name.encode()])).standard_normal((rows, columns))
    return torch.from_numpy(draws.astype(np.float32))
