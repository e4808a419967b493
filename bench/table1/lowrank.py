"""Best low-rank approximations of a matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """``up @ down``: a matrix of low rank by its leading singular triplets, largest first.

    ``down`` is ``k x in`` with orthonormal rows, ``up`` ``out x k``; its columns' norms are the singular values.
    """

    down: Tensor
    up: Tensor

    def product(self) -> Tensor:
        """Return the matrix, ``out x in``."""
        return self.up @ self.down


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
