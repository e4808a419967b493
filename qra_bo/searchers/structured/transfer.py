"""Transfer between searches: what earlier runs say of the next, in one file that the package or the user holds.

It has the exchange rates of bits and ranks (``rates``), and the scales of the default surrogate's parts. Scales are in
standard deviations of the latent loss, so that those of one model, task or budget inform those of another. (Transfer of
single units' posteriors to a search of another text on the same model was also tried, as one more part and as the first
proposal: it did not pay.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from pydantic import AllowInfNan, PositiveFloat, PositiveInt, TypeAdapter

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.priors import prior_file, read_prior
from qra_bo.searchers.structured.features import build_components
from qra_bo.searchers.structured.rates import NAMES, Rates, Study, learn, observed, study_of
from qra_bo.trials import Trial
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.files import strict_json, write_json
from surrogates.structured import Component, Design, StructuredModel

SCHEMA_VERSION = 3
LEAST_SPREAD, MOST_SPREAD = 0.3, 0.7
"""Bounds of a learned prior's spread: a few studies are never certain, and it is never vaguer than without them."""


@dataclass(frozen=True, slots=True)
class PartPrior:
    """Prior of one part's scale: its median, and the standard deviation of its logarithm."""

    scale: PositiveFloat
    spread: PositiveFloat


def fitted_scales(problem: SearchProblem, trials: Sequence[Trial]) -> dict[str, float] | None:
    """Return the scale of every part as fitted to one study's losses; ``None`` with fewer than ``LEAST_LOSSES``."""
    if (found := observed(problem, trials)) is None:
        return None
    rows, losses, counts = (torch.from_numpy(values) for values in found)
    model = StructuredModel(Design(build_components(problem)), rows, losses, counts)
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


@dataclass(frozen=True)
class Lesson:
    """What one finished study tells: of the rates, of the parts' scales, and its calibrated factor on the learning
    rate that its trainer has for the model."""

    study: Study
    scales: Mapping[str, float]
    lr_scale: float


def lesson_of(problem: SearchProblem, trials: Sequence[Trial], lr_scale: float) -> Lesson | None:
    """Return what a study's trials at its learning rate tell; ``None`` with fewer than ``LEAST_LOSSES``."""
    study, scales = study_of(problem, trials), fitted_scales(problem, trials)
    return None if study is None or scales is None else Lesson(study, scales, lr_scale)


@dataclass(frozen=True)
class Prior:
    """What was learned from several studies.

    Args:
        rates: Exchange rates between bits and ranks.
        parts: Scales of the surrogate's parts, by their names.
        lr_scale: Factor on the trainer's learning rate: the geometric mean of the calibrated ones.
        sources: The studies in words.
    """

    rates: Rates
    parts: Mapping[str, PartPrior]
    lr_scale: float
    sources: tuple[str, ...]


def learn_prior(lessons: Mapping[str, Lesson]) -> Prior:
    """Return the prior that the lessons give together, at least one, by the names of their studies."""
    found = list(lessons.values())
    scale = float(f"{np.exp(np.mean(np.log([lesson.lr_scale for lesson in found]))):.3g}")  # as a calibration rounds it
    return Prior(learn([lesson.study for lesson in found]), combine([lesson.scales for lesson in found]), scale,
                 tuple(lessons))


def save_prior(prior: Prior, path: Path) -> None:
    """Write a prior as JSON, atomically."""
    r = prior.rates
    write_json(path, {
        "schema_version": SCHEMA_VERSION, "sources": list(prior.sources),
        "rates": {"slopes": dict(zip(NAMES, r.slopes.tolist(), strict=True)), "covariance": r.covariance.tolist(),
                  "error": r.error, "steps": r.steps, "studies": r.studies},
        "lr_scale": prior.lr_scale,
        "parts": {name: asdict(part) for name, part in prior.parts.items()}})


def load_prior(given: str) -> Prior:
    """Inverse of ``save_prior``, for a file or the name of one that comes with the package.

    Raises:
        ConfigError: If the file can't be read or does not hold a prior.
    """
    path = prior_file(given)
    try:
        data = strict_json(read_prior(given))
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {data['schema_version']!r}, this release reads {SCHEMA_VERSION}")
        stored = TypeAdapter(_StoredRates).validate_python(data["rates"])
        rates = Rates(np.array([stored.slopes[name] for name in NAMES]), np.array(stored.covariance), stored.error,
                      stored.steps, stored.studies)
        if rates.covariance.shape != (len(NAMES), len(NAMES)) \
                or np.linalg.eigvalsh(rates.covariance).min() < -1e-12:
            raise ValueError(f"the covariance must be positive and {len(NAMES)} x {len(NAMES)}")
        return Prior(rates, TypeAdapter(dict[str, PartPrior]).validate_python(data["parts"]),
                     TypeAdapter(PositiveFloat).validate_python(data["lr_scale"]), tuple(map(str, data["sources"])))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path} holds no prior of python -m qra_bo.prior: {error}") from error


@dataclass(frozen=True, slots=True)
class _StoredRates:
    """``Rates`` as a file holds them."""

    slopes: dict[str, Annotated[float, Ge(0), AllowInfNan(False)]]
    covariance: list[list[Annotated[float, AllowInfNan(False)]]]
    error: Annotated[float, Ge(0), AllowInfNan(False)]
    steps: PositiveInt
    studies: PositiveInt
