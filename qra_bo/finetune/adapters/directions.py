"""Directions in which adapters start: of the linears' inputs (EVA) and of the weights' gradients."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qra_bo.finetune.adapters.lowrank import leading
from qra_bo.finetune.models.inputs import each_input
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.training.gradients import CalibrationText, each_gradient
from qra_bo.oracle.protocol import Progress

SKETCH_ROWS = 128
"""Rows of a gradient's sketch for up to half as many directions; two for every direction beyond."""


def input_directions(bank: LayerBank, names: Sequence[str], text: CalibrationText, rank: int,
                     progress: Progress | None) -> dict[str, Tensor]:
    """Return the leading right singular vectors, ``k x in``, of the dense model's inputs to every linear.

    EVA (arXiv 2410.07170). One pass over the text; an input that several linears share is decomposed once. ``k`` is
    ``rank``, or the width of an input that has fewer.
    """
    found: dict[str, Tensor] = {}

    def directions(_name: str, inputs: Tensor) -> Tensor:
        width = inputs.shape[-1]
        return leading(inputs.reshape(-1, width), min(rank, width)).down.cpu()

    def keep(name: str, down: Tensor) -> None:
        found[name] = down
        if progress is not None:
            progress("initialise", len(found), len(names))

    bank.restore_dense()
    each_input(bank.model, names, text.ids.to(bank.device), directions, keep)
    return found


def gradient_directions(bank: LayerBank, names: Sequence[str], text: CalibrationText, rank: int,
                        progress: Progress | None) -> dict[str, Tensor]:
    """Return about the leading right singular vectors, ``k x in``, of the dense weights' summed gradients.

    An adapter with B = 0 learns fastest along these at first. LoRA-GA (arXiv 2407.05000) starts both factors from the
    gradient's singular vectors and subtracts their product from the weights; here B is 0 and the base stays as it is.
    No gradient of a weight is kept, but a sketch of its rows, ``S G`` with a Gaussian ``S`` (Halko, Martinsson and
    Tropp, 2011), or the gradient itself where it has no more rows. The directions of one rank are the first of a larger
    one, up to half of ``SKETCH_ROWS``. ``k`` is ``rank``, or less where a linear is narrower.
    """
    sketches: dict[str, Tensor] = {}

    def add(name: str, gradient: Tensor, x: Tensor) -> None:
        mixer = _mixer(name, gradient.shape[1], max(SKETCH_ROWS, 2 * rank)).to(gradient.device)
        part = ((gradient @ mixer).t() @ x).cpu()  # the memory plan of a device has no room for all of them
        sketches[name] = sketches[name] + part if name in sketches else part

    def done(through: int, batches: int) -> None:
        if progress is not None:
            progress("initialise", through, batches)

    bank.restore_dense()
    each_gradient(bank.model, names, text, bank.device, add, done)
    return {name: leading(sketch, min(rank, *sketch.shape)).down for name, sketch in sketches.items()}


def _mixer(name: str, rows: int, columns: int) -> Tensor:
    """Draw ``rows x columns`` by the linear's name alone; the identity where that is no larger."""
    if rows <= columns:
        return torch.eye(rows)
    draws = np.random.default_rng(np.random.SeedSequence([*name.encode()])).standard_normal((rows, columns))
    return torch.from_numpy(draws.astype(np.float32))
