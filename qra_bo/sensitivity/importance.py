"""Importance of units: an estimate of quantisation sensitivity, min-max scaling, Eq. 6's rounding onto ladders, and the
repair of Eqs. 4-5, which lowers an allocation step by step, least important bytes first, until it fits the budget."""

from collections.abc import Sequence

import numpy as np

from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import CostTable, FloatArray, IntArray, SearchSpace
from qra_bo.utils.errors import BudgetError

_EXACT = 1e-24
"""Variance (squared nats) below which a rise of the loss counts as exact: rounding is no smaller."""
_ROUNDS = 10
EPS = 1e-8
"""Added to every importance, so that among unimportant units the bytes saved decide."""


def sensitivity_scales(sensitivity: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return a sensitivity (nats), at least 0 and falling along the ladder, and its square root, each ``L x F``."""
    level = np.clip(sensitivity, 0.0, None)
    monotone = np.maximum.accumulate(level[:, ::-1], axis=1)[:, ::-1]
    return monotone, np.sqrt(monotone)


def shrunk_sensitivity(profile: SensitivityProfile) -> FloatArray:
    """Estimate the sensitivity of each unit and format (nats, at least 0), ``L x F``: the rise of the loss, shrunk
    towards the KL divergence according to its standard error (not shrunk where that was not measured).

    On little text a small rise of the loss is mostly noise; the divergence sums over all next tokens and has little.
    On text that the model predicts well both have one expectation. The model of their squared distance,
    ``a se^2 + s KL^2`` (``a`` at least 1: no text is drawn quite as the model expects), is fitted over all units and
    formats by iterated weighted least squares, and of the distance the share of ``s KL^2`` in both is kept
    (empirical Bayes). Low formats, whose rise exceeds the noise most, decide about ``s``.
    """
    rise, kl = profile.quantization_sensitivity, np.clip(profile.quantization_kl, 0.0, None)
    variance = np.zeros_like(rise) if profile.quantization_se is None else profile.quantization_se**2
    noisy = variance > _EXACT
    if not noisy.any():
        return np.clip(rise, 0.0, None)
    apart = rise - kl
    inflation, spread = _variances(apart[noisy] ** 2, variance[noisy], kl[noisy] ** 2)
    room = spread * kl**2
    kept = np.where(noisy, room / np.where(noisy, room + inflation * variance, 1.0), 1.0)
    return np.clip(kl + kept * apart, 0.0, None)


def _variances(squares: FloatArray, variance: FloatArray, kl_squared: FloatArray) -> tuple[float, float]:
    """``a >= 1`` and ``s >= 0`` of ``squares = a variance + s kl_squared`` for ``n`` of each, weighted with the inverse
    variance of Gaussian squares."""
    from scipy.optimize import nnls  # stays unloaded in task=memory
    inflation, spread = 1.0, 0.0
    design = np.column_stack([variance, kl_squared])
    for _ in range(_ROUNDS):
        weights = 1.0 / (inflation * variance + spread * kl_squared)
        beyond, spread = nnls(design * weights[:, None], (squares - variance) * weights)[0].tolist()
        inflation = 1.0 + beyond
    return inflation, spread


def min_max(values: FloatArray) -> FloatArray:
    """Scaled to [0, 1]; zeros where all values are equal."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)


def scaled_by_value(rows: IntArray, space: SearchSpace) -> tuple[FloatArray, FloatArray]:
    """Bits and ranks of ``n x 2 L`` rows scaled to [0, 1] over their ladders by value, ``n x L`` each: formats of one
    bit-width share a value, and a ladder of one value gives 0."""
    bits, ranks = (min_max(np.array(v, dtype=np.float64)) for v in ([f.bits for f in space.formats], space.ranks))
    return bits[rows[:, :space.n_units]], ranks[rows[:, space.n_units:]]


def fidelity_importance(profile: SensitivityProfile) -> FloatArray:
    """I_q of every unit in [0, 1], ``L``: averaged over formats (the lowest bits weigh most), scaled."""
    return min_max(profile.quantization_sensitivity.mean(axis=1))


def plasticity_importance(profile: SensitivityProfile, largest_rank: int) -> FloatArray:
    """I_r of every unit in [0, 1], ``L``: the rank sensitivity at ``largest_rank``, scaled. Raises ``ProfileError`` if
    the profile holds no I_r."""
    gain = profile.require_rank_sensitivity()
    return min_max(gain[:, min(largest_rank, gain.shape[1]) - 1])


def round_to_ladder(scaled: FloatArray, values: Sequence[int]) -> IntArray:
    """Index of the ladder value nearest to ``first + scaled * (last - first)``, for ``scaled`` in [0, 1] of any shape.

    Ties go to the lower value, and equal values (formats of one bit-width) resolve to the first.
    """
    ladder = np.array(values, dtype=np.float64)
    target = ladder[0] + scaled * (ladder[-1] - ladder[0])
    return np.asarray(np.abs(target[..., None] - ladder).argmin(axis=-1))


def warm_start(space: SearchSpace, profile: SensitivityProfile) -> IntArray:
    """Eq. 6 with tau the identity: the row ``q = round_Q(I_q)``, ``r = round_R(I_r)``, ``2 L``; it need not fit the
    budget. Raises ``ProfileError`` if the profile holds no I_r."""
    ranks = space.ranks
    q = round_to_ladder(fidelity_importance(profile), [f.bits for f in space.formats])
    r = round_to_ladder(plasticity_importance(profile, ranks[-1]), ranks)
    return np.concatenate([q, r])


class Repair:
    """Applies, while the allocation does not fit, the downgrade with the least (importance + eps) / (bytes saved).

    Bytes saved are counted in the phase that binds (the first of the largest). Where no edit saves bytes there
    (e.g. several units share the largest spike), the least important one is applied.

    Args:
        importance_q: I_q, ``L``, min-max scaled.
        importance_r: I_r, ``L``, min-max scaled.
    """

    def __init__(self, costs: CostTable, budget_bytes: int, importance_q: FloatArray, importance_r: FloatArray) -> None:
        self._weights = np.concatenate([importance_q, importance_r]) + EPS
        self._budget, self._units = budget_bytes, np.arange(costs.shape[0])
        self._fixed = np.array([p.fixed for p in costs.phases])
        self._sizes, self._spikes = (np.stack(tables) for tables in zip(*((p.unit, p.spike) for p in costs.phases),
                                                                        strict=True))

    def __call__(self, row: IntArray, keep: frozenset[int] = frozenset()) -> IntArray:
        """The repaired row, ``2 L``; ``row`` itself, copied, if it fits.

        Raises ``BudgetError`` if it does not fit and nothing can be lowered any more.

        Args:
            row: Index row, ``2 L``.
            keep: Coordinates that are not to be lowered.
        """
        row, units, free = row.copy(), self._units, np.ones(len(row), dtype=bool)
        free[list(keep)] = False
        while True:
            q, r = row[:len(units)], row[len(units):]
            sizes, spikes = self._sizes[:, units, q, r], self._spikes[:, units, q, r]
            totals = self._fixed + sizes.sum(axis=1) + spikes.max(axis=1)
            binding = int(totals.argmax())
            if totals[binding] <= self._budget:
                return row
            edits = np.flatnonzero(free & (row > 0))
            if not len(edits):
                raise BudgetError(f"the allocation needs {totals[binding]} bytes, more than the budget of "
                                  f"{self._budget}; nothing of it can be lowered: raise it, or admit fewer bits")
            unit, of_format = edits % len(units), edits < len(units)
            after = (binding, unit, q[unit] - of_format, r[unit] - ~of_format)
            peak, owner = spikes[binding].max(), int(spikes[binding].argmax())
            others = np.full(len(units), peak)  # largest spike of the other units
            others[owner] = np.delete(spikes[binding], owner).max(initial=0)
            saved = (sizes[binding, unit] - self._sizes[after]) + (peak - np.maximum(others[unit], self._spikes[after]))
            if (saved > 0).any():
                edits, saved = edits[saved > 0], saved[saved > 0]
                row[edits[np.argmin(self._weights[edits] / saved)]] -= 1
            else:
                row[edits[np.argmin(self._weights[edits])]] -= 1
