"""Plan of the study of levers: which variants are compared, and which trial comes next.

Each lever compares a variant with a base. The learning rates of both are the best of three on the validation split
at the search's seed: two, and a third beside the better of them. Both are then trained on one unseen seed and evaluated
on the test split, and on the other four where either loss of the variant is lower by more than ``PROMISING``. Trials
that levers share count once.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from bench.length.plan import FORMATS, SEARCH_SEED, UNSEEN_SEEDS, next_rate
from bench.length.trials import Found, PlannedTrial
from bench.levers.predicted import BUDGET_BYTES, Prediction, Predictions
from qra_bo.space import Allocation, uniform

PROMISING = 0.01
"""Gain in nats from which a lever is confirmed on all unseen seeds."""
PLAIN, START, SCHEDULE = "", "weighted", "stable"
"""What a variant changes besides its allocation: nothing, the start of its adapters, the schedule of the rate."""
PREDICTED_RATES = (1.0, 1.4)
"""First factors tried for predicted allocations, about the 1.15 that ``effort=instant`` takes."""
START_RATES = (0.5, 1.0)
LENGTHS = (24, 240)
"""Optimiser steps: all levers are screened after the first."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What is trained: a prediction or a uniform choice (bits and rank), the first two factors on its learning rate,
    the smaller first, and what else is changed."""

    name: str
    source: Prediction | tuple[int, int]
    rates: tuple[float, float]
    change: str = PLAIN


@dataclass(frozen=True, slots=True)
class Lever:
    """A comparison. ``limit`` is ``""`` where both need the same bytes and no budget bounds them."""

    name: str
    variant: Variant
    base: Variant
    limit: str = "54 MB stored"


@dataclass(slots=True)
class Judged:
    """What the finished trials say of a variant.

    Args:
        tried: Validation loss by factor on the learning rate; infinite where there was none.
        rate: Best factor, once all are tried.
        tested: Test loss by unseen seed.
        missing: The trial that calibrates next, if any.
    """

    tried: dict[float, float] = field(default_factory=dict)
    rate: float | None = None
    tested: dict[int, float] = field(default_factory=dict)
    missing: PlannedTrial | None = None


def _predicted(granularity: str, bits: tuple[int, ...], by_share: bool = False,
               budget_bytes: int = BUDGET_BYTES) -> Variant:
    ladder = f"{', '.join(map(str, bits[:-1]))} and {bits[-1]} bits"
    name = f"predicted by {granularity}, {ladder}{', roots by share' if by_share else ''}"
    if budget_bytes != BUDGET_BYTES:
        name += f", within {budget_bytes / 1e6:g} MB"
    return Variant(name, Prediction(granularity, bits, by_share, budget_bytes), PREDICTED_RATES)


def _uniform(bits: int, rank: int, change: str = PLAIN) -> Variant:
    return _changed(Variant(f"uniform {bits} bits, rank {rank}", (bits, rank), START_RATES), change)


def _changed(variant: Variant, change: str) -> Variant:
    rates = START_RATES if change == START else variant.rates
    return replace(variant, name=f"{variant.name}, {change}", change=change, rates=rates) if change else variant


LAYERS = _predicted("layer", (3, 4))
LADDER = _predicted("layer", (2, 3, 4, 8))
TIGHT = _predicted("layer", (2, 3, 4), budget_bytes=42_000_000)
"""About a third of its layers have 2 bits."""
LEVERS = (
    Lever("units: single modules, 2 to 5 bits, roots by share", _predicted("module", (2, 3, 4, 5), True), LAYERS),
    Lever("weighted initialisation, uniform 3 bits, rank 15", _uniform(3, 15, START), _uniform(3, 15)),
    Lever("ladder of 3 and 4 bits", LAYERS, LADDER),
    Lever("units: single modules", _predicted("module", (3, 4)), LAYERS),
    Lever("weighted initialisation, uniform 2 bits, rank 16", _uniform(2, 16, START), _uniform(2, 16), ""),
    Lever("units: single modules, roots by share", _predicted("module", (3, 4), True), LAYERS),
    Lever("ladder of 2, 3, 4, 5, 6 and 8 bits", _predicted("layer", (2, 3, 4, 5, 6, 8)), LADDER),
    Lever("warm-up, stable, decay, predicted by layer", _changed(LAYERS, SCHEDULE), LAYERS),
    Lever("warm-up, stable, decay, uniform 3 bits, rank 15", _uniform(3, 15, SCHEDULE), _uniform(3, 15)),
    Lever("ladder of 2, 3 and 4 bits", _predicted("layer", (2, 3, 4)), LADDER),
    Lever("units: fused modules", _predicted("fused", (3, 4)), LAYERS),
    Lever("weighted initialisation, uniform 4 bits, rank 16", _uniform(4, 16, START), _uniform(4, 16), ""),
    Lever("weighted initialisation, 2, 3 and 4 bits", _changed(TIGHT, START), TIGHT, "42 MB stored"),
)
"""In the order in which they are tried."""


def sources_of(levers: Iterable[Lever]) -> list[Prediction]:
    """Return the predictions that levers compare, each once."""
    sources = (variant.source for lever in levers for variant in (lever.base, lever.variant))
    return list(dict.fromkeys(source for source in sources if isinstance(source, Prediction)))


def setting(text: str, change: str) -> str:
    """Return the name of a setting: the text, and what is changed."""
    return f"{text}-{change}" if change else text


def allocation_of(variant: Variant, predictions: Predictions, modules: int) -> Allocation | None:
    """Return a variant's allocation by module, ``None`` while its profile is not measured."""
    if isinstance(variant.source, Prediction):
        return predictions.get(variant.source)
    bits, rank = variant.source
    return uniform(modules, FORMATS[bits], rank)


def judge(text: str, steps: int, variant: Variant, allocation: Allocation, found: Found) -> Judged:
    """Follow the rules of this module as far as the finished trials of a variant of so many steps go."""
    judged = Judged()
    while (rate := next_rate(judged.tried, first=variant.rates)) is not None:
        trial = PlannedTrial(setting(text, variant.change), allocation, steps, SEARCH_SEED, "validation", rate)
        if trial.key not in found:
            judged.missing = trial
            return judged
        judged.tried[rate] = _loss(found, trial)
    judged.rate = min(judged.tried, key=lambda rate: judged.tried[rate])
    for seed in UNSEEN_SEEDS:
        if (trial := tested(text, steps, variant, allocation, judged.rate, seed)).key in found:
            judged.tested[seed] = _loss(found, trial)
    return judged


def tested(text: str, steps: int, variant: Variant, allocation: Allocation, rate: float, seed: int) -> PlannedTrial:
    """Return the trial of a variant on an unseen seed."""
    return PlannedTrial(setting(text, variant.change), allocation, steps, seed, "test", rate)


def gain(variant: Judged, base: Judged) -> float | None:
    """Return by how much the variant's validation loss is lower, ``None`` while it is not known."""
    if variant.rate is None or base.rate is None:
        return None
    return base.tried[base.rate] - variant.tried[variant.rate]


def _loss(found: Found, trial: PlannedTrial) -> float:
    value = found[trial.key]["loss"]
    return math.inf if value is None else float(value)


def wanted(text: str, steps: int, levers: Sequence[Lever], predictions: Predictions, modules: int,
           found: Found) -> Iterator[tuple[PlannedTrial, str]]:
    """Yield the missing trials of levers in order, with their titles; a lever whose profile is missing has none."""
    for lever in levers:
        sides = [(v, a) for v in (lever.base, lever.variant) if (a := allocation_of(v, predictions, modules))]
        if len(sides) < 2 or (sides[0][1] == sides[1][1] and lever.base.change == lever.variant.change):
            continue
        judged = [judge(text, steps, variant, allocation, found) for variant, allocation in sides]
        yield from ((j.missing, variant.name) for (variant, _), j in zip(sides, judged, strict=True) if j.missing)
        if (gained := gain(judged[1], judged[0])) is None:
            continue
        first = UNSEEN_SEEDS[0]
        if all(first in j.tested for j in judged):
            gained = max(gained, judged[0].tested[first] - judged[1].tested[first])
        for (variant, allocation), j in zip(sides, judged, strict=True):
            for seed in UNSEEN_SEEDS if gained > PROMISING else (first,):
                if seed not in j.tested and j.rate is not None:
                    yield tested(text, steps, variant, allocation, j.rate, seed), variant.name
