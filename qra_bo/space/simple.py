"""Fractional choices: two neighbouring formats and one rank, the units at the wider one fixed by a blind rule.

The rule measures nothing: *both ends first*. Layers at the ends of the depth get the wider format before those in the
middle, the last layer first. With its simplest case, one format everywhere, these are the simple choices, which any
choice of layers must beat.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from qra_bo.space.allocation import Allocation
from qra_bo.space.space import SearchSpace, StorageFormat

BLIND_RULE = "both ends first"
"""Name of the rule that decides which units are wider."""


def blind_order(space: SearchSpace) -> tuple[int, ...]:
    """Return the ``L`` units in the order in which they get the wider format: layers from both ends of the depth in
    turn, the last first; units of one layer in their own order."""
    layers = [min(linear.layer for linear in unit.linears) for unit in space.units]
    ranked = sorted(set(layers))
    turn = {layer: min(2 * (len(ranked) - 1 - i), 2 * i + 1) for i, layer in enumerate(ranked)}
    return tuple(sorted(range(space.n_units), key=lambda unit: turn[layers[unit]]))


def nested(space: SearchSpace, low: StorageFormat, high: StorageFormat, rank: int,
           order: Sequence[int] | None = None) -> list[Allocation]:
    """Return the ``L + 1`` allocations of one rank in which the first 0 to ``L`` units of ``order`` (``None``: by the
    blind rule) have the format ``high`` and the others ``low``."""
    place = np.argsort(blind_order(space) if order is None else order)
    return [Allocation(tuple(high.name if p < wider else low.name for p in place), (rank,) * len(place))
            for wider in range(len(place) + 1)]


def mix(space: SearchSpace, low: StorageFormat, high: StorageFormat, bits: Fraction, rank: int,
        order: Sequence[int] | None = None) -> Allocation:
    """Return the last allocation of ``nested`` whose code bits, averaged over parameters, do not exceed ``bits``, which
    is at least the bits of ``low``: in a larger average every unit has at least the same bits."""
    order = blind_order(space) if order is None else order
    room = (bits - low.bits) * int(space.unit_numel.sum())
    spent = (high.bits - low.bits) * np.cumsum(space.unit_numel[list(order)])
    return nested(space, low, high, rank, order)[sum(int(n) <= room for n in spent)]
