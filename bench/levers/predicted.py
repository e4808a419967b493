"""Allocations that ``effort=instant`` predicts within the study's budget, in units of single modules.

A profile of every granularity is measured once, in all formats that a ladder of the study has; a ladder takes its own.
Trials of all granularities are made with ``granularity=module``, in which every allocation can be written: they share a
worker process and their codes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.length.command import study_config
from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.pipeline.build import make_memory
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured.lengths import at_length
from qra_bo.searchers.structured.rates import Rates, scales
from qra_bo.searchers.structured.transfer import load_prior
from qra_bo.sensitivity.io import profile_from_json, profile_to_json
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import Allocation, FloatArray, Unit, make_units
from qra_bo.study.prediction import solved

BUDGET_BYTES = 54_000_000
PROFILED = {"layer": (2, 3, 4, 5, 6, 8), "module": (3, 4, 2, 5), "fused": (3, 4)}
"""Bits in which every granularity is profiled, in this order; those that are added later are measured alone."""
Profiles = Mapping[str, SensitivityProfile]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What ``effort=instant`` is asked for.

    Args:
        granularity: Units that share format and rank.
        bits: Ladder.
        by_share: Whether the root of a sensitivity is taken per share of the parameters, so that its sum over the
            parts of a layer is about that of the layer. The product's rates take it per unit.
        budget_bytes: Most stored bytes.
    """

    granularity: str
    bits: tuple[int, ...]
    by_share: bool = False
    budget_bytes: int = BUDGET_BYTES


Predictions = Mapping[Prediction, Allocation]


def trial_config(text: str, gsm8k: Path | None, more: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of all trials on a text; those of predictions differ in granularity and ladder."""
    return study_config(text, gsm8k, ["granularity=module", f"budget={BUDGET_BYTES}", "memory.scope=stored",
                                      "search.length=trial", "dtype=bfloat16", *more])


def profile_path(folder: Path, text: str, granularity: str) -> Path:
    """Return the file of a profile and of what it cost."""
    return folder / f"profile-{text}-{granularity}.json"


def save_profile(path: Path, profile: SensitivityProfile, cost: dict[str, Any]) -> None:
    """Write a profile, without the rank sensitivity that no prediction reads, and its cost."""
    path.write_text(json.dumps({"profile": profile_to_json(replace(profile, rank_sensitivity=None)), "cost": cost})
                    + "\n", encoding="utf-8")


def load_profile(path: Path) -> tuple[SensitivityProfile, dict[str, Any]]:
    """Inverse of ``save_profile``."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return profile_from_json(content["profile"], str(path)), content["cost"]


def joined(first: SensitivityProfile, second: SensitivityProfile) -> SensitivityProfile:
    """Return the profile in the formats of two of the same units and sequences; both have standard errors."""
    def beside(name: str) -> FloatArray:
        return np.hstack([getattr(first, name), getattr(second, name)])

    return replace(first, formats=(*first.formats, *second.formats),
                   quantization_sensitivity=beside("quantization_sensitivity"),
                   quantization_kl=beside("quantization_kl"), quantization_se=beside("quantization_se"))


def load_profiles(folder: Path, text: str) -> Profiles:
    """Return the profiles of a text that are measured, by granularity."""
    paths = {granularity: profile_path(folder, text, granularity) for granularity in PROFILED}
    return {granularity: load_profile(path)[0] for granularity, path in paths.items() if path.exists()}


def predict(wanted: Prediction, profile: SensitivityProfile, config: RunConfig, steps: int) -> Allocation:
    """Return the allocation of the granularity's own units.

    Args:
        wanted: What is asked for.
        profile: Of the granularity, with the formats of the ladder.
        config: Of the granularity and ladder.
        steps: Length of the training that is predicted.
    """
    spec = make_spec(config)
    space = make_space(config, spec)
    costs = make_memory(config, spec, "cpu").table(space)
    problem = SearchProblem(space, costs, wanted.budget_bytes, profile.of_formats([f.name for f in space.formats]),
                            steps, None, config.seed)
    rates = at_length(load_prior(config.surrogate.rates).rates, steps)
    table = table_by_share(rates, problem, spec.n_layers) if wanted.by_share else rates.table(problem)
    return solved(problem, table, [1.0])[0][0]


def table_by_share(rates: Rates, problem: SearchProblem, layers: int) -> FloatArray:
    """Return the expected loss of every choice of every unit, ``L x F x R``, with roots by share of the parameters: as
    the product's where units are layers of equal size."""
    level, root, shares = scales(problem)
    share = shares[:, None]
    ranks = np.log2(np.array(problem.space.ranks.values, dtype=np.float64))
    a, b, c = rates.slopes
    return np.asarray((a * level + b * root * np.sqrt(share * layers))[:, :, None] - c * share[:, :, None] * ranks)


def by_module(allocation: Allocation, units: Sequence[Unit], modules: Sequence[Unit]) -> Allocation:
    """Return an allocation of ``units`` as one of single modules."""
    of = {linear.name: position for position, unit in enumerate(units) for linear in unit.linears}
    places = [of[module.linears[0].name] for module in modules]
    return Allocation(tuple(allocation.formats[p] for p in places), tuple(allocation.ranks[p] for p in places))


def predictions_of(wanted: Iterable[Prediction], profiles: Profiles, config: RunConfig, steps: int) -> Predictions:
    """Return the predicted allocations by module, of the profiles that are measured.

    Args:
        wanted: What is asked for.
        profiles: By granularity.
        config: Of any trial.
        steps: Length of the training that is predicted.
    """
    spec, found = make_spec(config), {}
    for prediction in wanted:
        if (profile := profiles.get(prediction.granularity)) is not None:
            own = config.with_changes(granularity=prediction.granularity, bits=prediction.bits)
            found[prediction] = by_module(predict(prediction, profile, own, steps),
                                          make_units(spec, prediction.granularity), make_units(spec, "module"))
    return found
