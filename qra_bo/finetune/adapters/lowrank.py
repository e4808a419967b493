"""Best low-rank approximations, and alternating decompositions of a weight into a quantised and a low-rank part.

LoftQ (arXiv 2310.08659) and LQ-LoRA (arXiv 2311.12023) alternate a quantisation of ``W - L`` with a singular value
decomposition of ``W - Q``; they differ in the order of the two, and in when to stop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qra_bo.finetune.quantization.base import State

Requantise = Callable[[Tensor], tuple[State, Tensor]]
"""Packed tensors of an ``out x in`` fp32 weight, and what they unpack to (``out x in``)."""


@dataclass(frozen=True, slots=True)
class Factors:
    """``up @ down``: a matrix of low rank by its leading singular triplets, largest first.

    ``down`` is ``k x in`` with orthonormal rows, ``up`` ``out x k``; its columns' norms are the singular values. (From
    ``nearest_for_inputs`` the rows have length 1 and need not be orthogonal.)
    """

    down: Tensor
    up: Tensor

    def first(self, rank: int) -> "Factors":
        """Return the best approximation of a smaller rank."""
        return Factors(self.down[:rank], self.up[:, :rank])

    def product(self) -> Tensor:
        """Return the matrix, ``out x in``."""
        return self.up @ self.down

    def as_adapter(self, scale: float, balance: Literal["even", "kaiming"]) -> tuple[Tensor, Tensor]:
        """Return A (``k x in``) and B (``out x k``) with ``scale B A = up @ down``.

        Args:
            scale: alpha / r.
            balance: The share of the singular values in A. ``"even"``: their roots, as in LoftQ, LQ-LoRA and PiSSA.
                ``"kaiming"``: every row of A has the norm of LoRA's own initialisation, 1 / sqrt(3), so that B learns
                as fast however small the singular values are (with ``"even"`` an adapter over a base of 8 bits starts
                near the saddle A = B = 0 and learns slowly).
        """
        if balance == "kaiming":
            norm = 3.0 ** -0.5
            return self.down * norm, self.up / (norm * scale)
        values = torch.linalg.vector_norm(self.up, dim=0).div(scale).clamp_min(torch.finfo(torch.float32).tiny)
        roots = values.sqrt()
        return self.down * roots[:, None], self.up / (scale * roots)


def leading(matrix: Tensor, rank: int) -> Factors:
    """Return the best approximation of rank ``rank`` of an ``out x in`` matrix.

    From the eigenvectors of the smaller Gram matrix: several times as fast as a full decomposition, and all of them
    are formed whatever ``rank`` is, so that a smaller rank is a prefix of a larger one, bit for bit.
    """
    matrix = matrix.float()
    wide = matrix.shape[0] < matrix.shape[1]
    _, vectors = torch.linalg.eigh(matrix @ matrix.t() if wide else matrix.t() @ matrix)
    vectors = vectors.flip(1)
    if not wide:
        return Factors(vectors.t()[:rank].contiguous(), (matrix @ vectors)[:, :rank].contiguous())
    rows = vectors.t() @ matrix
    values = torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return Factors((rows / values[:, None])[:rank].contiguous(), (vectors * values)[:, :rank].contiguous())


def nearest_for_inputs(error: Tensor, root: Tensor, rank: int) -> Factors:
    """Return the product P of rank ``rank`` that minimises ``||(E - P) L||_F``: nearest to E for inputs x with the
    second moments ``L L^T``.

    It is ``U U^T E``, with U the leading left singular vectors of ``E L`` (CLoQ, arXiv 2501.18475; QERA, arXiv
    2410.06040): no factor is inverted, and a smaller rank is a prefix of a larger one.

    Args:
        error: E, ``out x in``.
        root: L, ``in x in``.
        rank: Of P; at most the smaller side of ``error``.
    """
    tiny = torch.finfo(torch.float32).tiny
    up = leading(error @ root, rank).up
    axes = up / torch.linalg.vector_norm(up, dim=0).clamp_min(tiny)
    down = axes.t() @ error
    lengths = torch.linalg.vector_norm(down, dim=1).clamp_min(tiny)
    return Factors(down / lengths[:, None], axes * lengths)


@dataclass(frozen=True, slots=True)
class Decomposition:
    """``W ~ Q + L``: packed Q, L, and the Frobenius norm of ``W - Q - L`` over that of ``W`` after every iteration."""

    state: State
    factors: Factors
    errors: tuple[float, ...]


def quantised_first(weight: Tensor, requantise: Requantise, rank: int, iterations: int) -> Decomposition:
    """LoftQ: ``Q_t = quantise(W - L_{t-1})``, ``L_t = SVD_r(W - Q_t)``, from ``L_0 = 0``, for ``iterations`` >= 1."""
    weight = weight.float()
    low, errors = torch.zeros(()), []
    for _ in range(iterations):
        state, dense = requantise(weight - low)
        residual = weight - dense.float()
        factors = leading(residual, rank)
        low = factors.product()
        errors.append(_relative(residual - low, weight))
    return Decomposition(state, factors, tuple(errors))


def low_rank_first(weight: Tensor, requantise: Requantise, rank: int, iterations: int,
                   first: Factors | None = None) -> Decomposition:
    """LQ-LoRA: ``L_t = SVD_r(W - Q_{t-1})``, ``Q_t = quantise(W - L_t)``, from ``Q_0 = 0``.

    Ends after ``iterations`` >= 1, or as soon as an error rises, and returns the iterate of the least error. One
    iteration is quantised PiSSA (arXiv 2404.02948). ``first`` is ``L_1``, where it is known.
    """
    weight = weight.float()
    factors, dense = first, torch.zeros(())
    errors: list[float] = []
    for _ in range(iterations):
        if factors is None or errors:
            factors = leading(weight - dense, rank)
        low = factors.product()
        state, unpacked = requantise(weight - low)
        dense = unpacked.float()
        errors.append(_relative(weight - low - dense, weight))
        if len(errors) > 1 and errors[-1] >= errors[-2]:
            break
        best = state, factors
    return Decomposition(*best, tuple(errors))


def _relative(error: Tensor, weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(error) / torch.linalg.vector_norm(weight))
