"""Losses of many allocations after several numbers of steps, as models of training length read them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.collect.task import DATA, TASKS, task_config
from bench.length.command import study_config
from bench.length.plan import SEARCH_SEED, uniform_choice
from bench.length.rates import rate_rows
from bench.length.summary import predictors
from bench.length.trials import Found, PlannedTrial, load, to_event, trial_of
from bench.search.play import ALONE
from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.emulator.emulator import usable
from qra_bo.oracle.emulator.table import load_table
from qra_bo.pipeline.build import make_memory
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.structured.rates import Rates, row_of, rows_terms
from qra_bo.searchers.structured.transfer import load_prior
from qra_bo.sensitivity import SensitivityProfile
from qra_bo.sensitivity.io import load_profile
from qra_bo.space import Allocation, FloatArray, IntArray, uniform

PROFILE = DATA / "plays" / "profile_default.json"
"""Sensitivities on the plays in the study's formats, as a run with ``bits=[3,4] dtype=float32`` measured them; trials
with other formats are left out."""
ALL_FORMATS = DATA / "plays" / "profile_bf16.json"
"""Sensitivities on the plays in the formats of the table of curves, in bf16 (``python -m bench.levers``)."""
STEPS, LOOKS, SHORT = 240, (24, 72, 120), 24
"""Length of the training runs whose curves are read, steps of a curve besides its end, and length of short runs."""
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Curves:
    """Losses of one text, training seed and split: ``n`` rows, an allocation at a learning rate each.

    Args:
        name: Origin, in words.
        steps: Optimiser steps of the columns, increasing, ``S``.
        losses: ``n x S`` (nats per token); NaN where a loss is unknown.
        terms: Of the exchange rates (``rates.terms``, summed over units), ``n x 3``.
        rates: Factor on the learning rate, ``n``.
        allocation: Number of the row's allocation, ``n``.
        stored: Stored bytes, ``n``.
        bit: Terms of 3 bits everywhere less those of 4 bits, ``3``.
        elsewhere: Exchange rates after 24 steps, learned on another text.
        noise: Standard deviation of a loss over training seeds (nats); ``None`` where nothing was repeated.
    """

    name: str
    steps: tuple[int, ...]
    losses: FloatArray
    terms: FloatArray
    rates: FloatArray
    allocation: IntArray
    stored: FloatArray
    bit: FloatArray
    elsewhere: Rates
    noise: float | None = None

    @property
    def n_allocations(self) -> int:
        """How many different allocations there are."""
        return len(np.unique(self.allocation))

    def hiding(self, hidden: Mask, seen: int) -> "Curves":
        """Return the curves without the losses of ``hidden`` rows after column ``seen``."""
        losses = self.losses.copy()
        losses[hidden, seen + 1:] = np.nan
        return replace(self, losses=losses)

    def rows(self, chosen: Mask) -> "Curves":
        """Return the ``chosen`` rows."""
        return replace(self, losses=self.losses[chosen], terms=self.terms[chosen], rates=self.rates[chosen],
                       allocation=self.allocation[chosen], stored=self.stored[chosen])

    def best_rates(self) -> Mask:
        """Return which rows hold the least final loss of their allocation: its calibrated learning rate."""
        final = self.losses[:, -1]
        least = {a: final[self.allocation == a].min() for a in np.unique(self.allocation)}
        return np.array([final[i] == least[a] for i, a in enumerate(self.allocation)], dtype=bool)


def of_table(task: str) -> Curves:
    """Return the table of a text, ``bench/data/TASK``: losses half-way and after 24 steps, at one learning rate."""
    config = task_config("plays", None)  # the space is the model's, whatever the text
    table = load_table(DATA / task)
    data = usable(table)
    terms, bit = _terms(config, table.profile, data.allocations)
    half, end = table.facts.record_at[-1], table.facts.steps
    known = np.isfinite(terms[:, 0]) & np.isfinite(data.targets[:, -2:]).all(axis=1)
    n = int(known.sum())
    return Curves(f"{task}, table of {end} steps", (half, end), data.targets[known, -2:], terms[known], np.ones(n),
                  np.arange(n), _stored(config, data.allocations)[known], bit, _elsewhere(task),
                  data.noise.deviations[0])


def of_trials(path: Path, profile: SensitivityProfile | None = None, name: str = "plays") -> list[Curves]:
    """Return the curves over ``STEPS`` steps on the plays, one for every training seed and split.

    Args:
        path: Trials of the length study, or of the table of curves; an absent file holds none.
        profile: Sensitivities; those of ``PROFILE`` where ``None``.
        name: Origin, in words.
    """
    runs = _runs(path, STEPS)
    looks = [dict(map(tuple, e["curve"])) for e in runs]
    losses = [[curve.get(step, np.nan) for step in (*LOOKS, STEPS)] for curve in looks]
    return _grouped(f"{name},", (*LOOKS, STEPS), runs, losses, profile)


def of_best(path: Path, profile: SensitivityProfile | None = None, name: str = "plays") -> Curves:
    """Return the last losses of whole runs over ``SHORT`` and over ``STEPS`` steps, each at the best of its learning
    rates, of every allocation that has both at the training seed and split of most allocations."""
    best: dict[int, dict[tuple[Allocation, str, int], dict[str, Any]]] = {SHORT: {}, STEPS: {}}
    for steps, of in best.items():
        for e in sorted(_runs(path, steps), key=lambda e: -e["loss"]):
            of[trial_of(e).allocation, e["split"], e["train_seed"]] = e
    both = [key for key in best[STEPS] if key in best[SHORT]]
    groups = _grouped(f"{name}, runs of {SHORT} and", (SHORT, STEPS),
                      [{**best[STEPS][key], "lr_scale": 1.0} for key in both],
                      [[best[steps][key]["loss"] for steps in (SHORT, STEPS)] for key in both], profile)
    return max(groups, key=lambda curves: len(curves.losses))


def of_rates(found: Found, profile: SensitivityProfile | None = None) -> Curves:
    """Return the last losses of whole runs over ``SHORT`` and over ``STEPS`` steps in the study of learning rates, each
    at the vertex of the parabola through its rates', of every allocation that has both."""
    best = {(row["bits"], row["rank"], row["steps"]): row["loss"] for row in rate_rows(found)}
    both = [(bits, rank) for bits, rank, steps in best if steps == STEPS and (bits, rank, SHORT) in best]
    events = [to_event(PlannedTrial("plays", uniform_choice(*choice).allocation, STEPS, SEARCH_SEED, "validation", 1.0),
                       "", {}, "") for choice in both]
    (curves,) = _grouped(f"plays, tuned runs of {SHORT} and", (SHORT, STEPS), events,
                         [[best[*choice, steps] for steps in (SHORT, STEPS)] for choice in both], profile)
    return curves


def _runs(path: Path, steps: int) -> list[dict[str, Any]]:
    """Return the trials on the plays over ``steps`` with codes by GPTQ that ended with a loss."""
    return [e for e in load(path).values()
            if (e["task"], e["steps"], e["codes"]) == ("plays", steps, None) and e["loss"] is not None]


def _grouped(name: str, steps: tuple[int, ...], events: Sequence[Mapping[str, Any]], losses: Sequence[Sequence[float]],
             profile: SensitivityProfile | None) -> list[Curves]:
    """Return the curves of every training seed and split, at least one; trials outside the profile's formats are left
    out."""
    profile = load_profile(PROFILE) if profile is None else profile
    config = study_config("plays", None, [f"bits={[parse_format(fmt).bits for fmt in profile.formats]}"])
    allocations = [trial_of(e).allocation for e in events]
    terms, bit = _terms(config, profile, allocations)
    stored, values = _stored(config, allocations), np.array(losses, dtype=np.float64).reshape(-1, len(steps))
    numbers = {a: i for i, a in enumerate(dict.fromkeys(allocations))}
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i in np.flatnonzero(np.isfinite(values).all(axis=1) & np.isfinite(terms[:, 0])).tolist():
        groups[events[i]["split"], events[i]["train_seed"]].append(i)
    if not groups:
        groups["validation", SEARCH_SEED] = []
    elsewhere = _elsewhere("plays")
    found = [Curves(f"{name} {steps[-1]} steps, {split}, seed {seed}", steps, values[rows], terms[rows],
                    np.array([events[i]["lr_scale"] for i in rows], dtype=np.float64),
                    np.array([numbers[allocations[i]] for i in rows], dtype=np.int64), stored[rows], bit, elsewhere)
             for (split, seed), rows in groups.items()]
    noise = _noise(found)
    return [replace(curves, noise=noise) for curves in found]


def _terms(config: RunConfig, profile: SensitivityProfile,
           allocations: Sequence[Allocation]) -> tuple[FloatArray, FloatArray]:
    """Return the terms of each allocation, ``n x 3``, NaN where a format or rank lies outside the space; and those of 3
    bits everywhere less those of 4 bits, ``3``."""
    spec = make_spec(config)
    space = make_space(config, spec)
    problem = SearchProblem(space, make_memory(config, spec, "cpu").table(space), 0, profile, STEPS, None, 0)
    by_bits = [uniform(space.n_units, f.name, 1) for bits in (3, 4) for f in space.formats if f.bits == bits]
    rows = [row_of(problem, allocation) for allocation in (*by_bits, *allocations)]
    terms = np.full((len(rows), 3), np.nan)
    inside = [i for i, row in enumerate(rows) if row is not None]
    terms[inside] = rows_terms(problem, np.stack([row for row in rows if row is not None]))
    return terms[2:], terms[0] - terms[1]


def _stored(config: RunConfig, allocations: Sequence[Allocation]) -> FloatArray:
    """Return the stored bytes of each allocation, ``n``."""
    predict = predictors(config)["stored"]
    return np.array([predict(a) for a in allocations], dtype=np.float64)


def _elsewhere(task: str) -> Rates:
    """Return the exchange rates that were learned on the other table's text."""
    (other,) = set(TASKS) - {task}
    return load_prior(str(DATA / other / ALONE)).rates


def _noise(groups: Sequence[Curves]) -> float | None:
    """Return the deviation of a final loss between training seeds, the level of each seed taken out; ``None`` below two
    seeds of one split that share two trials."""
    by_split: dict[str, list[Curves]] = defaultdict(list)
    for curves in groups:
        by_split[curves.name.rpartition(", seed ")[0]].append(curves)
    squares, freedom = 0.0, 0
    for members in by_split.values():
        seen = [dict(zip(zip(c.allocation, c.rates, strict=True), c.losses[:, -1], strict=True)) for c in members]
        shared = [key for key in seen[0] if all(key in other for other in seen)]
        if len(seen) > 1 and len(shared) > 1:
            x = np.array([[losses[key] for key in shared] for losses in seen])
            left = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
            squares, freedom = squares + float((left**2).sum()), freedom + (len(seen) - 1) * (len(shared) - 1)
    return float(np.sqrt(squares / freedom)) if freedom else None
