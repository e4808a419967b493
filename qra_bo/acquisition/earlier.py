"""What an earlier search believed of every format and rank of every unit, carried to a search over the same units."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qra_bo.sensitivity.profile import FloatArray
from qra_bo.space import SearchSpace

Axes = tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]


@dataclass(frozen=True)
class EarlierTable:
    """An additive latent loss over units, formats and ranks.

    Args:
        units: Names of the units with their numbers of weights: ``L`` texts.
        formats: Names, ``F``.
        ranks: ``R``.
        values: ``L x F x R``, every unit's mean 0; in standard deviations of the sum over random allocations.
    """

    units: tuple[str, ...]
    formats: tuple[str, ...]
    ranks: tuple[int, ...]
    values: FloatArray

    @classmethod
    def of(cls, space: SearchSpace, table: FloatArray) -> "EarlierTable":
        """The belief ``table`` (``L x F x R``, any scale) over ``space``."""
        centred = table - table.mean(axis=(1, 2), keepdims=True)
        scale = float(np.sqrt(centred.var(axis=(1, 2)).sum()))
        return cls(_names(space), tuple(f.name for f in space.formats), space.ranks.values,
                   centred / scale if scale > 0 else centred)

    @property
    def axes(self) -> Axes:
        """What the values are over."""
        return self.units, self.formats, self.ranks

    def over(self, space: SearchSpace) -> FloatArray | None:
        """The values over ``space``, ``L x F x R``; ``None`` unless it has the same units, and formats and ranks that
        are all among those of the table. Ranks between two of the table are interpolated in their logarithm."""
        formats = [f.name for f in space.formats]
        ranks = np.array(space.ranks.values, dtype=np.float64)
        if _names(space) != self.units or not set(formats) <= set(self.formats) \
                or ranks[0] < self.ranks[0] or ranks[-1] > self.ranks[-1]:
            return None
        chosen = self.values[:, [self.formats.index(f) for f in formats], :]
        position = np.interp(np.log(ranks), np.log(self.ranks), np.arange(len(self.ranks)))
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, len(self.ranks) - 1)
        found: FloatArray = chosen[..., low] + (position - low) * (chosen[..., high] - chosen[..., low])
        return found

    def to_json(self) -> dict[str, Any]:
        return {"units": list(self.units), "formats": list(self.formats), "ranks": list(self.ranks),
                "values": np.round(self.values, 6).tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EarlierTable":
        """Inverse of ``to_json`` but for rounding.

        Raises:
            ValueError: If it is no such table.
        """
        units, formats = tuple(map(str, data["units"])), tuple(map(str, data["formats"]))
        ranks = tuple(data["ranks"])
        if not all(type(r) is int and r > 0 for r in ranks) or sorted(set(ranks)) != list(ranks):
            raise ValueError("the ranks of its table must be positive integers, strictly increasing")
        values = np.array(data["values"], dtype=np.float64)
        if values.shape != (len(units), len(formats), len(ranks)) or not values.size or not np.isfinite(values).all():
            raise ValueError(f"its table must hold {len(units)} x {len(formats)} x {len(ranks)} finite values")
        return cls(units, formats, ranks, values)


def _names(space: SearchSpace) -> tuple[str, ...]:
    """Units by name and size: those of another model seldom agree in both."""
    return tuple(f"{unit.name}:{numel}" for unit, numel in zip(space.units, space.unit_numel.tolist(), strict=True))
