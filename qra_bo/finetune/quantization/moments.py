"""Second moments of a linear's inputs, and their factors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qra_bo.utils.errors import ModelError, is_out_of_memory

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean (the paper's)."""
ROWS = 2048
"""Inputs that are widened to fp32 at a time."""


def second_moments(inputs: Tensor) -> Tensor:
    """Return ``X^T X``, ``in x in`` in fp32, of inputs ``... x in``."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    moments = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    for part in torch.split(rows, ROWS):
        wide = part.float()
        moments += wide.T @ wide
    return moments


@dataclass(frozen=True, slots=True)
class Inputs:
    """Factored second moments of inputs: columns by decreasing moment, and the upper Cholesky factor of the inverse
    moments in that order, ``in x in``. The most important columns are rounded while most others are free."""

    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> "Inputs":
        """Factor ``X^T X`` (``in x in``) of inputs ``X`` (``tokens x in``), where the moments are.

        In fp64 on a CPU. A GPU factors in fp32, as the paper does: consumer cards compute fp64 at 1/64 of that rate.
        Where it has no room, or moments are not positive definite in fp32, they are factored in fp64 on the host.

        Raises:
            ModelError: If they are not positive definite.
        """
        if moments.device.type != "cpu":
            try:
                order, factor, failed = _factored(moments.float())
                if not failed:
                    return cls(order, factor)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        order, factor, failed = _factored(moments.to("cpu", torch.float64))
        if failed:
            raise ModelError("second moments of a linear's inputs are not positive definite; use another dtype, or "
                             "quantizer.rounding=rtn and adapter.init=kaiming, which need none")
        return cls(order.to(moments.device), factor.to(moments.device, torch.float32))

    def root(self) -> Tensor:
        """Return L (``in x in``) with ``L L^T`` the damped moments."""
        units = torch.eye(len(self.order), device=self.factor.device)
        rows: Tensor = torch.linalg.solve_triangular(self.factor, units, upper=True)
        return rows[torch.argsort(self.order)]


def _factored(moments: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return the order of the columns, the factor, and whether a decomposition failed.

    A matrix goes as soon as the next is made from it: for the widest layers each takes a GB of a GPU.
    """
    diagonal = moments.diagonal()
    mean = diagonal.mean()
    damped = diagonal + torch.where(mean > 0, DAMPING * mean, 1.0)  # 1.0: inputs that are always 0
    order = torch.argsort(damped, descending=True, stable=True)
    rows = moments[order]
    del moments, diagonal  # a view of them
    matrix = rows[:, order]
    del rows
    matrix.diagonal().copy_(damped[order])
    lower, first = torch.linalg.cholesky_ex(matrix)
    del matrix
    inverse = torch.cholesky_inverse(lower)
    del lower
    factor, second = torch.linalg.cholesky_ex(inverse, upper=True)
    return order, factor, bool((first + second) > 0)
