"""First proposals: knapsacks under several assumed exchange rates between damage and gain, for none is known."""

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured.features import damage_scales, rank_scale
from qra_bo.sensitivity.damages import BELIEVED
from qra_bo.sensitivity.profile import FloatArray

# (power of damage, nats that the whole rank ladder is worth over nats that the typical format costs): small rates
# put bytes into formats, large ones into ranks; the square root believes less in differences between units. In an order
# that spreads the first few over the rates.
_ASSUMPTIONS = ((1.0, 0.03), (0.5, 0.3), (0.5, 1.0), (0.5, 0.1), (1.0, 0.3), (1.0, 1.0), (0.5, 3.0), (1.0, 3.0))

LEAST_PRIOR = 4


def prior_share(equivalents: float) -> int:
    """First proposals of a search that may spend so many full-trial equivalents: about a quarter of them. Where
    bytes belong is what a search knows least, and what it would otherwise settle too soon."""
    return min(len(_ASSUMPTIONS), max(LEAST_PRIOR, round(equivalents / 4)))


def prior_tables(problem: SearchProblem, n: int, damage: str = BELIEVED) -> list[FloatArray]:
    """The first ``n`` (at most 8) additive loss tables to solve before anything is learned, each ``L x F x R``.

    Raises:
        ConfigError: If there is no such damage (``damage_of``).
    """
    level, root = damage_scales(problem, damage)
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
    """The largest format that every unit could have at the smallest rank; the smallest if none fits."""
    n_units = problem.space.n_units
    rows = np.array([[f] * n_units + [0] * n_units for f in range(len(problem.space.formats))], dtype=np.int64)
    fits = np.flatnonzero(problem.costs.feasible(rows, problem.budget_bytes))
    return int(fits[-1]) if len(fits) else 0
