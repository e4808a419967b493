"""Transfer between searches: scales of the default surrogate's parts, fitted to earlier runs, as priors of the next.

Scales of the parts are in standard deviations of the latent loss, so that those of one model, task or budget inform
those of another, while losses themselves do not. (Transfer of single units' posteriors to a search of another text on
the same model was also tried, as one more part and as the first proposal: it did not pay.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveFloat, TypeAdapter

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.observations import Observations
from qra_bo.searchers.priors import read_prior
from qra_bo.searchers.structured.features import build_components
from qra_bo.trials import Trial
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.files import strict_json, write_json
from surrogates.structured import Component, Design, StructuredModel

SCHEMA_VERSION = 1
LEAST_LOSSES = 10
"""Losses below which a study does not determine the scales."""
LEAST_SPREAD, MOST_SPREAD = 0.3, 0.7
"""Bounds of a learned prior's spread: a few studies are never certain, and it is never vaguer than without them."""


@dataclass(frozen=True, slots=True)
class PartPrior:
    """Prior of one part's scale: its median, and the standard deviation of its logarithm."""

    scale: PositiveFloat
    spread: PositiveFloat


def fitted_scales(problem: SearchProblem, trials: Sequence[Trial]) -> dict[str, float] | None:
    """Return the scale of every part as fitted to one study's losses; ``None`` with fewer than ``LEAST_LOSSES``."""
    seen = Observations(problem)
    seen.tell(trials)
    rows, losses, counts = seen.arrays()
    if len(rows) < LEAST_LOSSES:
        return None
    model = StructuredModel(Design(build_components(problem)), torch.from_numpy(rows), torch.from_numpy(losses),
                            torch.from_numpy(counts))
    return {name: scale for name, scale in model.scales.items() if name not in ("noise", "residual")}


def combine(studies: Sequence[Mapping[str, float]]) -> dict[str, PartPrior]:
    """Return the geometric mean of every part's scale over the studies that have it; its spread is that between them,
    within ``LEAST_SPREAD`` and ``MOST_SPREAD``."""
    found = {}
    for name in dict.fromkeys(name for study in studies for name in study):
        logs = np.log([study[name] for study in studies if name in study])
        between = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
        found[name] = PartPrior(float(np.exp(logs.mean())), min(float(np.hypot(between, LEAST_SPREAD)), MOST_SPREAD))
    return found


def with_prior(components: Sequence[Component], prior: Mapping[str, PartPrior]) -> list[Component]:
    """Return the components with the learned priors of their scales; components without one stay as they are."""
    return [replace(c, scale=prior[c.name].scale, spread=prior[c.name].spread) if c.name in prior else c
            for c in components]


def save_prior(prior: Mapping[str, PartPrior], sources: Sequence[str], path: Path) -> None:
    """Write a prior as JSON, atomically; ``sources`` describe its runs in words."""
    write_json(path, {"schema_version": SCHEMA_VERSION, "sources": list(sources),
                      "parts": {name: asdict(part) for name, part in prior.items()}})


def load_prior(path: Path) -> dict[str, PartPrior]:
    """Inverse of ``save_prior``; raises ``ConfigError`` if the file can't be read or does not hold a prior."""
    try:
        data = strict_json(read_prior(str(path)))
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {data['schema_version']!r}, this release reads {SCHEMA_VERSION}")
        return TypeAdapter(dict[str, PartPrior]).validate_python(data["parts"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"surrogate.prior: {path} holds no prior of python -m qra_bo.prior: {error}") from error
