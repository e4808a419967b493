"""Kernels over ladder positions: designs with one format and one rank for every unit."""

import math
from typing import Any

import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel, MaternKernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from surrogates.errors import SurrogateError


def matern52(distance: Tensor) -> Tensor:
    """Return the Matern-5/2 correlation of scaled distances: ``(1 + a + a^2 / 3) exp(-a)`` with ``a = sqrt(5) d``."""
    a = math.sqrt(5.0) * distance
    return (1.0 + a + a.square() / 3.0) * torch.exp(-a)


class OrdinalMaternKernel(MaternKernel):  # type: ignore[misc]  # gpytorch is untyped
    """Matern-5/2 over one axis of ladder positions, with one length-scale.

    Inputs (``... x n x 1``) are positions scaled to [0, 1], so that unequal steps of the ladder's values do not
    matter, only their order.

    Args:
        median: Median of the length-scale's log-normal prior.
    """

    def __init__(self, median: float = 0.5, **kwargs: Any) -> None:
        super().__init__(nu=2.5, lengthscale_prior=LogNormalPrior(math.log(median), 0.75), **kwargs)
        self.initialize(lengthscale=median)


class JointUnitKernel(Kernel):  # type: ignore[misc]  # gpytorch is untyped
    """Additive over units; within a unit formats, ranks and their interplay: ``a k_q + b k_r + c k_q k_r``.

    Inputs are ``... x n x 2 L``: positions of ``L`` formats, then of ``L`` ranks, each scaled to [0, 1]. The three
    weights (shared by all units, together the prior variance) and two length-scales are learned.

    Args:
        n_units: ``L``.
    """

    is_stationary = True

    def __init__(self, n_units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_units = n_units
        self.formats = OrdinalMaternKernel()
        self.ranks = OrdinalMaternKernel()
        self.register_parameter("raw_weights", torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)))
        self.register_constraint("raw_weights", Positive())
        self.register_prior("weights_prior", LogNormalPrior(math.log(0.3), 1.0), _get_weights, _set_weights)
        self.weights = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)

    @property
    def weights(self) -> Tensor:
        """Prior variances of formats, ranks and their interplay, summed over units, ``3``."""
        value: Tensor = self.raw_weights_constraint.transform(self.raw_weights)
        return value

    @weights.setter
    def weights(self, value: Tensor) -> None:
        self.initialize(raw_weights=self.raw_weights_constraint.inverse_transform(value))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False,
                **params: Any) -> Tensor:
        """Return the covariances: ``... x n x m``, or ``... x n`` with ``diag``."""
        n = self.n_units
        if x1.shape[-1] != 2 * n or last_dim_is_batch:
            raise SurrogateError(f"inputs must have {2 * n} columns for {n} units; got {x1.shape[-1]}")
        k_q = self._by_unit(self.formats, x1[..., :n], x2[..., :n], diag)
        k_r = self._by_unit(self.ranks, x1[..., n:], x2[..., n:], diag)
        weights = self.weights
        return (weights[0] * k_q + weights[1] * k_r + weights[2] * k_q * k_r).mean(dim=-1)

    @staticmethod
    def _by_unit(kernel: OrdinalMaternKernel, x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
        """Return the correlations of every unit on a trailing axis, ``... x n x m x L`` or ``... x n x L``."""
        difference = x1 - x2 if diag else x1.unsqueeze(-2) - x2.unsqueeze(-3)
        return matern52(difference.abs() / kernel.lengthscale[..., 0, 0])


def _get_weights(kernel: JointUnitKernel) -> Tensor:
    return kernel.weights


def _set_weights(kernel: JointUnitKernel, value: Tensor) -> None:
    kernel.weights = value
