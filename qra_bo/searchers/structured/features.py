"""Sensitivities of an allocation as features of the structured surrogate, and as objectives of the first proposals."""

import math

import numpy as np
import torch
from torch import Tensor

from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.importance import min_max, sensitivity_scales, shrunk_sensitivity
from qra_bo.space import FloatArray
from surrogates.structured import Component

_REFERENCE_ROWS = 200


def build_components(problem: SearchProblem) -> list[Component]:
    """Return the parts of the latent loss, each with unit variance over a reference set of allocations.

    Format and rank by share of parameters, quantisation sensitivity (with its square root, and both of the KL
    divergence), quantisation sensitivity times rank, rank sensitivity; all units share the weights.
    """
    space, profile = problem.space, problem.profile
    n_units, n_formats, n_ranks = problem.costs.shape
    share = space.unit_share[:, None]
    level, root = sensitivity_scales(shrunk_sensitivity(problem.profile))
    log_rank = min_max(np.log(np.array(space.ranks, dtype=np.float64)))
    below = np.triu(np.ones((n_formats, n_formats)))[:, :-1]  # below[f, j] = 1 for formats up to j: a step above it
    rank_steps = np.tril(np.ones((n_ranks, n_ranks)))[:, 1:] * np.sqrt(np.diff(log_rank))

    def table(formats: FloatArray, ranks: FloatArray) -> FloatArray:
        """Return products of shares with ``F x m`` and ``R x m`` (or single columns), ``L x F x R x m``."""
        return np.asarray(share[:, None, None, :] * formats[None, :, None, :] * ranks[None, None, :, :])

    flat_f, flat_r = np.ones((n_formats, 1)), np.ones((n_ranks, 1))
    kl = np.clip(profile.quantization_kl, 0.0, None)
    sides = np.stack([level, root, kl, np.sqrt(kl)], axis=-1)[:, :, None, :]
    sensitivities = np.broadcast_to(sides, (n_units, n_formats, n_ranks, sides.shape[-1]))
    parts = {"format": (table(below, flat_r), 0.7), "rank": (table(flat_f, log_rank[:, None]), 0.3),
        "rank shape": (table(flat_f, rank_steps), 0.15), "quantization_sensitivity": (sensitivities, 0.7),
        "quantization_sensitivity x rank": (sensitivities[..., 1:2] * log_rank[None, None, :, None], 0.2),
    }
    if profile.rank_sensitivity is not None:  # by rank, and its square root, each over its mean
        reach = np.minimum(np.array(space.ranks), profile.rank_sensitivity.shape[1]) - 1
        values = np.clip(profile.rank_sensitivity[:, reach], 0.0, None)
        gain = np.stack([values, np.sqrt(values)], axis=-1)
        mean = gain.mean(axis=(0, 1))
        gain = (gain / np.where(mean > 0, mean, 1.0))[:, None]
        parts["rank_sensitivity"] = (np.broadcast_to(gain, (n_units, n_formats, n_ranks, 2)), 0.2)
    rng = problem.rng("reference")  # a part's variance is measured over random allocations and all uniform ones
    random = np.hstack([rng.integers(0, n_formats, (_REFERENCE_ROWS, n_units)),
                        rng.integers(0, n_ranks, (_REFERENCE_ROWS, n_units))])
    uniform = [[f] * n_units + [r] * n_units for f in range(n_formats) for r in range(n_ranks)]
    reference = torch.from_numpy(np.vstack([random, np.array(uniform, dtype=np.int64)]))
    built = [_normalised(name, phi, scale, reference) for name, (phi, scale) in parts.items() if phi.shape[-1]]
    return [c for c in built if c is not None] or [
        Component("nothing", torch.zeros((*problem.costs.shape, 1), dtype=torch.float64))]


def _normalised(name: str, phi: FloatArray, scale: float, rows: Tensor) -> Component | None:
    """Scale every feature to an equal share of unit variance over ``rows``; ``None`` if all are constant."""
    n_units = phi.shape[0]
    features = torch.from_numpy(np.array(phi, dtype=np.float64))
    totals = features[torch.arange(n_units), rows[:, :n_units], rows[:, n_units:]].sum(dim=1)
    variance = (totals - totals.mean(dim=0)).square().mean(dim=0)
    used = variance > 1e-24
    if not bool(used.any()):
        return None
    scaled = features[..., used] / (variance[used] * int(used.sum())).sqrt()
    return Component(name, scaled, scale)


_ASSUMPTIONS = ((1.0, 0.03), (0.5, 0.3), (0.5, 1.0), (0.5, 0.1), (1.0, 0.3), (1.0, 1.0), (0.5, 3.0), (1.0, 3.0))
"""(Power of quantisation sensitivity, nats that all ranks together are worth over nats that the typical format costs).

Small rates put bytes into formats, large ones into ranks; the square root assumes smaller differences between units.
The order spreads the first few over the rates.
"""
_LEAST = 4


def prior_tables(problem: SearchProblem) -> list[FloatArray]:
    """Return additive loss tables to solve before anything is learned, ``L x F x R`` each: 4 to 8, about a quarter of
    the trials, and 4 where these are not limited.

    Whether bytes belong into bits or ranks is what a search knows least, and would otherwise settle too soon.
    """
    most = problem.max_full_trials
    n = _LEAST if math.isinf(most) else max(_LEAST, round(most / 4))
    level, root = sensitivity_scales(shrunk_sensitivity(problem.profile))
    share = problem.space.unit_share[:, None, None]
    n_units, n_formats, _ = problem.costs.shape
    rows = np.array([[f] * n_units + [0] * n_units for f in range(n_formats)], dtype=np.int64)
    # The largest format that every unit could have at the smallest rank; the smallest if none fits.
    typical = max(np.flatnonzero(problem.costs.feasible(rows, problem.budget_bytes)), default=0)
    ranks = min_max(np.log(np.array(problem.space.ranks, dtype=np.float64)))[None, None, :]
    tables = []
    for power, rate in _ASSUMPTIONS[:n]:
        loss = level if power == 1.0 else root
        total = loss[:, typical].sum() or 1.0
        tables.append(np.asarray(loss[:, :, None] / total - rate * ranks * share, dtype=np.float64))
    return tables
