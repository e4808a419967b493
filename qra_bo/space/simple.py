"""Fractional choices: two neighbouring formats and one rank, the units at the wider one fixed by a blind rule.

The rule measures nothing: *both ends first*. Layers at the ends of the depth get the wider format before those in the
middle, the last layer first. With its simplest case, one format everywhere, these are the simple choices, which any
choice of layers must beat.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

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


def wider_units(order: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which units are wider where the first 0 to ``L`` ones of ``order`` are, ``(L + 1) x L``."""
    return np.asarray(np.argsort(order)[None, :] < np.arange(len(order) + 1)[:, None])


def mix(space: SearchSpace, low: StorageFormat, high: StorageFormat, bits: Fraction, rank: int,
        order: Sequence[int] | None = None) -> Allocation:
    """Return the allocation of one rank in which as many first units of ``order`` (``None``: by the blind rule) have
    the format ``high``, and the others ``low``, as keep the average of code bits, weighted by parameters, to ``bits``.

    With more bits no unit gets fewer. ``bits`` are at least those of ``low``.
    """
    order = blind_order(space) if order is None else order
    room = (bits - low.bits) * int(space.unit_numel.sum())
    spent = (high.bits - low.bits) * np.cumsum(space.unit_numel[list(order)])
    wider = wider_units(order)[sum(int(n) <= room for n in spent)]
    return Allocation(tuple(high.name if w else low.name for w in wider), (rank,) * space.n_units)
