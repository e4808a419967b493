"""Eq. 9: the embedding psi(C) of allocations for a Gaussian process."""

import numpy as np
import numpy.typing as npt

from qra_bo.space.space import IntArray, SearchSpace

FloatArray = npt.NDArray[np.float64]


def min_max(values: FloatArray) -> FloatArray:
    """Scaled to [0, 1]; zeros where all values are equal."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def embed(rows: IntArray, space: SearchSpace, importance: FloatArray) -> FloatArray:
    """psi(C), ``n x (2 L + 2)``: scaled bits and ranks of every unit, and their importance-weighted means.

    ``s_q`` and ``s_r`` are bits and rank scaled to [0, 1] over their ladders by value (formats that share a
    bit-width share ``s_q``), 0 for a ladder of one value.

    Args:
        rows: ``n x 2 L`` index rows.
        space: Ladders.
        importance: I, ``L``.
    """
    n = space.n_units
    s_q = min_max(np.array([f.bits for f in space.formats], dtype=np.float64))[rows[:, :n]]
    s_r = min_max(np.array(space.ranks.values, dtype=np.float64))[rows[:, n:]]
    return np.hstack([s_q, s_r, s_q @ importance[:, None] / n, s_r @ importance[:, None] / n])
