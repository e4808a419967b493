"""The values that a packed matrix can hold with the scales that it has: what is free once a library chose those."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """Code ``k`` of weight ``[i, j]`` means ``levels[k] * scale[i, j] + offset[i, j]``.

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
        """The grid of consecutive groups of ``group`` weights in row-major order, each with a scale and an offset
        (``None``: 0); the last group may be cut off."""
        def spread(values: Tensor) -> Tensor:
            each = values.float().reshape(-1, 1).expand(-1, group).reshape(-1)
            return each[:shape[0] * shape[1]].view(shape)

        scale = spread(scale)
        return cls(levels.float(), scale, torch.zeros_like(scale) if offset is None else spread(offset))

    def column(self, j: int) -> "Grid":
        """The grid of one column, its fields ``out``."""
        return Grid(self.levels, self.scale[:, j], self.offset[:, j])

    def columns(self, order: Tensor) -> "Grid":
        """The grid with its columns in another order."""
        return Grid(self.levels, self.scale[:, order], self.offset[:, order])

    def nearest(self, values: Tensor) -> Tensor:
        """Codes of the nearest values that the grid has."""
        position = torch.where(self.scale > 0, (values - self.offset) / self.scale, torch.zeros_like(values))
        return torch.bucketize(position, (self.levels[1:] + self.levels[:-1]) / 2)

    def values(self, codes: Tensor) -> Tensor:
        """What codes mean."""
        return self.levels[codes] * self.scale + self.offset
