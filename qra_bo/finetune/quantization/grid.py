"""Values that a packed matrix can take with the scales that the library chose."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """Grid in which code ``k`` of weight ``[i, j]`` is ``levels[k] * scale[i, j] + offset[i, j]``.

    Args:
        levels: ``K``, ascending.
        scale: ``out x in``, at least 0.
        offset: ``out x in``.
    """

    levels: Tensor
    scale: Tensor
    offset: Tensor

    @classmethod
    def of_groups(cls, levels: Tensor, scale: Tensor, offset: Tensor | None, group: int,
                  shape: tuple[int, int]) -> "Grid":
        """Return the grid of groups of ``group`` consecutive weights in row-major order, each with a scale and offset.

        An offset of ``None`` is 0; the last group may be shorter.
        """
        def spread(values: Tensor) -> Tensor:
            each = values.float().reshape(-1, 1).expand(-1, group).reshape(-1)
            return each[:shape[0] * shape[1]].view(shape)

        scale = spread(scale)
        return cls(levels.float(), scale, torch.zeros_like(scale) if offset is None else spread(offset))

    def column(self, j: int) -> "Grid":
        """Return the grid of one column, its fields ``out``."""
        return Grid(self.levels, self.scale[:, j], self.offset[:, j])

    def columns(self, order: Tensor) -> "Grid":
        """Return the grid with its columns in another order."""
        return Grid(self.levels, self.scale[:, order], self.offset[:, order])

    def nearest(self, values: Tensor) -> Tensor:
        """Return the codes of the nearest values of the grid."""
        position = torch.where(self.scale > 0, (values - self.offset) / self.scale, torch.zeros_like(values))
        return torch.bucketize(position, (self.levels[1:] + self.levels[:-1]) / 2)

    def values(self, codes: Tensor) -> Tensor:
        """Return the values of codes."""
        return self.levels[codes] * self.scale + self.offset
