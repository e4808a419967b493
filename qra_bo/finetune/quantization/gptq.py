"""GPTQ (arXiv 2210.17323): codes are chosen column by column, each compensating the errors of those before.

The libraries round every weight to the nearest value. The loss of a layer depends on the error of its outputs,
``tr(E M E^T)`` for errors ``E`` (``out x in``) and second moments ``M`` of inputs (``in x in``): the columns that are
still free can compensate the error of a rounded one. Scales stay those of the library, so that bytes, format and layer
are the same and only the codes differ.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qra_bo.finetune.quantization.grid import Grid

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean (the paper's)."""
BLOCK = 128
"""Columns after which their errors are applied to all later ones at once (the paper's)."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Factored second moments of a layer's inputs: the same for all formats and all layers of these inputs.

    Args:
        order: Columns by decreasing second moment: the most important are rounded while most others are free.
        factor: Upper Cholesky factor of the inverse moments in that order, ``in x in``.
    """

    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> "Inputs":
        """Factor ``X^T X`` (``in x in``) of inputs ``X`` (``tokens x in``).

        In fp64 on the host: a GPU that is too small for its model has no room for it.
        """
        damped = moments.to("cpu", torch.float64, copy=True)
        diagonal = damped.diagonal()
        mean = float(diagonal.mean())
        diagonal += DAMPING * mean if mean > 0 else 1.0  # inputs that are always 0
        order = torch.argsort(diagonal, descending=True, stable=True)
        lower = torch.linalg.cholesky(damped[order][:, order])
        factor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
        return cls(order.to(moments.device), factor.to(moments.device, torch.float32))


def compensated_codes(weight: Tensor, grid: Grid, inputs: Inputs) -> Tensor:
    """Return codes, ``out x in`` (uint8), of ``weight`` in ``grid``.

    Args:
        weight: ``out x in``.
        grid: The values that can be stored.
        inputs: Factored inputs of the layer.
    """
    rest, sorted_grid = weight.float()[:, inputs.order], grid.columns(inputs.order)
    factor, n = inputs.factor, weight.shape[1]
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for first in range(0, n, BLOCK):
        last = min(first + BLOCK, n)
        part, within = rest[:, first:last].clone(), factor[first:last, first:last]
        errors = torch.empty_like(part)
        for j in range(last - first):
            column = sorted_grid.column(first + j)
            chosen = column.nearest(part[:, j])
            codes[:, first + j] = chosen.to(torch.uint8)
            errors[:, j] = (part[:, j] - column.values(chosen)) / within[j, j]
            part[:, j:] -= errors[:, j, None] * within[j, None, j:]
        rest[:, last:] -= errors @ factor[first:last, last:]
    return codes[:, torch.argsort(inputs.order)].contiguous()
