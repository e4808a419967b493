"""First proposals: knapsacks under several assumed exchange rates between quantisation and rank sensitivity."""

import math

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured.features import rank_scale, sensitivity_scales
from qra_bo.sensitivity.damages import BELIEVED
from qra_bo.sensitivity.profile import FloatArray

# (power of quantisation sensitivity, nats that the whole rank ladder is worth over nats that the typical format costs):
# small rates put bytes into formats, large ones into ranks; the square root assumes smaller differences between units.
# The order spreads the first few over the rates.
_ASSUMPTIONS = ((1.0, 0.03), (0.5, 0.3), (0.5, 1.0), (0.5, 0.1), (1.0, 0.3), (1.0, 1.0), (0.5, 3.0), (1.0, 3.0))
_LEAST = 4


def prior_share(max_full_trials: float) -> int:
    """Return the number of first proposals: about a quarter of the trials, the least where these are not limited.

    Whether bytes belong into bits or ranks is what a search knows least, and would otherwise settle too soon.
    """
    wanted = _LEAST if math.isinf(max_full_trials) else round(max_full_trials / 4)
    return min(len(_ASSUMPTIONS), max(_LEAST, wanted))


def prior_tables(problem: SearchProblem, n: int, quantization_sensitivity: str = BELIEVED) -> list[FloatArray]:
    """Return the first ``n`` (at most 8) additive loss tables to solve before anything is learned, each ``L x F x R``.

    Raises:
        ConfigError: If there is no such measure of quantisation sensitivity (``damage_of``).
    """
    level, root = sensitivity_scales(problem, quantization_sensitivity)
    share = (problem.space.unit_numel / problem.space.unit_numel.sum())[:, None, None]
    typical = _typical_format(problem)
    ranks = rank_scale(problem)[None, None, :]
    tables = []
    for power, rate in _ASSUMPTIONS[:n]:
        loss = level if power == 1.0 else root
        total = loss[:, typical].sum() or 1.0
        tables.append(np.asarray(loss[:, :, None] / total - rate * ranks * share, dtype=np.float64))
    return tables


def _typical_format(problem: SearchProblem) -> int:
    """Return the largest format that every unit could have at the smallest rank; the smallest if none fits."""
    n_units = problem.space.n_units
    rows = np.array([[f] * n_units + [0] * n_units for f in range(len(problem.space.formats))], dtype=np.int64)
    fits = np.flatnonzero(problem.costs.feasible(rows, problem.budget_bytes))
    return int(fits[-1]) if len(fits) else 0
