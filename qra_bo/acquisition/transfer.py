"""What earlier searches taught, as the prior of the next: how much every part of the default's surrogate mattered, and
what they believed of every choice.

Scales of the parts are in standard deviations of the latent loss, so that those of one model, task or budget say
something about those of another, while losses themselves do not. Beliefs about single units are of use to the same
model on another task: there the next search learns how far they hold, as the scale of one more part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qra_bo.acquisition.earlier import EarlierTable
from qra_bo.acquisition.features import build_components
from qra_bo.acquisition.observations import Observations
from qra_bo.errors import ConfigError
from qra_bo.files import strict_json, write_json
from qra_bo.records import Evaluation
from qra_bo.searcher import SearchProblem
from surrogates.structured import Component, Design, StructuredModel, StructuredSettings

SCHEMA_VERSION = 1
LEAST_LOSSES = 10
"""Losses below which a study says too little of the parts to be learned from."""
LEAST_SPREAD, MOST_SPREAD = 0.3, 0.7
"""Bounds of a learned prior's spread: a few studies are never certain, and it is never vaguer than without them."""


@dataclass(frozen=True, slots=True)
class PartPrior:
    """Prior of one part's scale: its median, and the standard deviation of its logarithm."""

    scale: float
    spread: float


@dataclass(frozen=True)
class Taught:
    """What one study taught.

    Args:
        scales: Scale of every part.
        table: What it believed of every choice.
    """

    scales: Mapping[str, float]
    table: EarlierTable


@dataclass(frozen=True)
class Prior:
    """What studies taught the next one; of a study with other units only ``parts`` are of use.

    Args:
        parts: Prior of every part's scale.
        table: What was believed of every choice, or ``None``.
    """

    parts: Mapping[str, PartPrior]
    table: EarlierTable | None = None


NOTHING = Prior({})


def taught(problem: SearchProblem, evaluations: Sequence[Evaluation],
           settings: StructuredSettings | None = None) -> Taught | None:
    """What one study's losses teach; ``None`` where it has fewer than ``LEAST_LOSSES``."""
    seen = Observations(problem)
    seen.tell(evaluations)
    rows, losses, counts = seen.arrays()
    if len(rows) < LEAST_LOSSES:
        return None
    model = StructuredModel(Design(build_components(problem)), torch.from_numpy(rows), torch.from_numpy(losses),
                            torch.from_numpy(counts), settings)
    scales = {name: scale for name, scale in model.scales.items() if name not in ("noise", "residual")}
    return Taught(scales, EarlierTable.of(problem.space, model.mean_table().numpy()))


def combine(studies: Sequence[Taught]) -> Prior:
    """Of every part the geometric mean of its scales over the studies that have it, its spread theirs and
    ``LEAST_SPREAD``; the mean belief of the studies over the units and ladders of the first."""
    found = {}
    for name in dict.fromkeys(name for study in studies for name in study.scales):
        logs = np.log([study.scales[name] for study in studies if name in study.scales])
        between = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
        found[name] = PartPrior(float(np.exp(logs.mean())), min(float(np.hypot(between, LEAST_SPREAD)), MOST_SPREAD))
    alike = [s.table for s in studies if s.table.axes == studies[0].table.axes]
    return Prior(found, replace(alike[0], values=np.mean([t.values for t in alike], axis=0)) if alike else None)


def with_prior(components: Sequence[Component], prior: Prior) -> list[Component]:
    """The parts with what was learned of their scales; parts of which nothing was learned stay as they are."""
    return [replace(c, scale=prior.parts[c.name].scale, spread=prior.parts[c.name].spread) if c.name in prior.parts
            else c for c in components]


def save_prior(prior: Prior, sources: Sequence[str], path: Path) -> None:
    """Write a prior as JSON, atomically, with where it comes from in words."""
    write_json(path, {"schema_version": SCHEMA_VERSION, "sources": list(sources),
                      "parts": {name: asdict(part) for name, part in prior.parts.items()},
                      "table": None if prior.table is None else prior.table.to_json()})


def load_prior(path: Path) -> Prior:
    """Inverse of ``save_prior``.

    Raises:
        ConfigError: If the file can't be read or is no prior.
    """
    try:
        return _prior(strict_json(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"surrogate.prior: {path} can't be read ({error.strerror}); give a file that python -m "
                          "qra_bo.prior wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"surrogate.prior: {path} is no prior that python -m qra_bo.prior wrote: {error}") from error


def _prior(data: Any) -> Prior:
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {data['schema_version']!r}, this release reads {SCHEMA_VERSION}")
    parts = {str(name): PartPrior(_positive(part["scale"]), _positive(part["spread"]))
             for name, part in data["parts"].items()}
    table = data.get("table")
    return Prior(parts, None if table is None else EarlierTable.from_json(table))


def _positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"scales and spreads must be positive numbers; got {str(value)[:40]!r}")
    return float(value)
