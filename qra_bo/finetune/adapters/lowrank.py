"""Best low-rank approximations of a matrix: nearest to its entries, or to what it does to a linear's inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

VERSION = 1
"""Goes up with every change of ``nearest_for_inputs``: factors on disk are kept by it."""


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

    def as_adapter(self, scale: float) -> tuple[Tensor, Tensor]:
        """Return A (``k x in``) and B (``out x k``) with ``scale B A = up @ down``; ``scale`` is alpha / r.

        Every row of A has the norm of LoRA's own initialisation, 1 / sqrt(3), so that B learns as fast however small
        the singular values are. (Were they shared evenly, an adapter over a base of 8 bits would begin near the saddle
        A = B = 0 and learn slowly.)
        """
        norm = 3.0 ** -0.5
        return self.down * norm, self.up / (norm * scale)


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
