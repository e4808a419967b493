"""Plan of the length study: blocks of trials in the order in which they are made, and what a block wants next.

A block compares allocations within one limit after one number of steps. Learning rates are calibrated in every block
with equal effort: the same number of rates for each class of allocations (band of ranks), on the validation split at
the search's training seed. The best uniform choice is the one with the least validation loss at its class's rate.
Finds, best uniform choice and references are then trained on unseen seeds and evaluated on the test split, all of
them on one seed before the next. A block without seeds only calibrates and validates.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from bench.length.trials import Found, PlannedTrial
from qra_bo.space import Allocation, uniform
from qra_bo.study.setting import training_seeds

FINDS = Path(__file__).with_name("finds.json")
LAYERS = 30
FORMATS = {2: "int2-g64", 3: "int3-g64", 4: "nf4", 5: "hqq5-g128", 6: "hqq6-g128", 8: "int8", 16: "fp16"}
"""Of the allocations that are trained: the default ladder."""
FIRST_RATES = (0.5, 1.0)
RATES = 3
"""Most rates tried in a class: the two of ``FIRST_RATES``, then half or twice, on the side of the better of them."""
EFFECTS = "effects of bits and ranks"
BAND_RATES = {"rank up to 2": 0.7, "rank up to 8": 0.85, "rank above 8": 1.0}
"""Factors on the learning rate by band of ranks, where a block calibrates none. (With 3.8 bits and rank 2, factors 0.5
and 1 gave 3.7259 and 3.7292 after 240 steps.)"""
REFERENCES = "references"
LIMITS = {"54 MB stored": ("54MB", "stored"), "uniform:4,16 stored": ("uniform:4,16", "stored")}
"""Budget and memory scope of every limit."""
UNIFORM = {"54 MB stored": ((3, 15), (3, 8), (3, 2)), "uniform:4,16 stored": ((4, 16), (4, 8))}
"""Bits and rank of the uniform candidates; fewer bits at larger ranks are far behind (``bench.length.table``)."""
SEARCH_SEED, UNSEEN_SEEDS = training_seeds(0, 5)


@dataclass(frozen=True, slots=True)
class Choice:
    """One allocation of a block.

    Args:
        name: Title in tables.
        allocation: Formats and ranks.
        kind: ``"find"``, ``"uniform"``, ``"reference"`` or ``"curve"``.
        rate_class: Choices of one class share a learning rate, calibrated on the first of them.
        codes: See ``PlannedTrial``.
    """

    name: str
    allocation: Allocation
    kind: str
    rate_class: str
    codes: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Choices compared within ``limit`` after ``steps``, on ``seeds`` unseen training seeds; where it is not
    ``calibrated`` at ``rates`` rates a class, at those of ``BAND_RATES``."""

    task: str
    limit: str
    steps: int
    seeds: int
    choices: tuple[Choice, ...]
    calibrated: bool = True
    rates: int = RATES

    def trial(self, choice: Choice, seed: int, split: str, lr_scale: float) -> PlannedTrial:
        """A trial of one of its choices."""
        return PlannedTrial(self.task, choice.allocation, self.steps, seed, split, lr_scale, choice.codes)


@dataclass(slots=True)
class Settled:
    """What the finished trials decide of a block.

    Args:
        block: Which.
        tried: Validation loss by rate, by class; infinite where there was none.
        rates: Calibrated rate by class, of the classes that are finished.
        validated: Validation loss of uniform candidates and curves at their classes' rates, by name.
        best_uniform: Best uniform choice once all candidates are known.
        tested: Test loss by seed, by name; infinite where there was none.
        wanted: Trials that are missing and can be named already, with the title of each, in order.
    """

    block: Block
    tried: dict[str, dict[float, float]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    validated: dict[str, float] = field(default_factory=dict)
    best_uniform: Choice | None = None
    tested: dict[str, dict[int, float]] = field(default_factory=dict)
    wanted: list[tuple[PlannedTrial, str]] = field(default_factory=list)


def next_rate(tried: Mapping[float, float], most: int = RATES,
              first: tuple[float, float] = FIRST_RATES) -> float | None:
    """The rate to try next, or ``None`` after ``most`` of them: the two of ``first``, the smaller before, then one
    beside the better end, as far from it as they are from each other."""
    for rate in first:
        if rate not in tried:
            return rate
    if len(tried) >= most:
        return None
    ratio = first[1] / first[0]
    return round(min(tried) / ratio if tried[min(tried)] <= tried[max(tried)] else max(tried) * ratio, 3)


def settle(block: Block, found: Found) -> Settled:
    """Follow the rules of this module as far as the finished trials go."""
    settled = Settled(block)

    def loss(choice: Choice, seed: int, split: str, rate: float) -> float | None:
        """Of a finished trial; a missing one becomes wanted."""
        trial = block.trial(choice, seed, split, rate)
        if trial.key not in found:
            settled.wanted.append((trial, choice.name))
            return None
        value = found[trial.key]["loss"]
        return math.inf if value is None else float(value)

    if not block.calibrated:
        settled.rates |= {c.rate_class: BAND_RATES[c.rate_class] for c in block.choices}
        settled.tried |= {name: {} for name in settled.rates}
    for name in dict.fromkeys(c.rate_class for c in block.choices if block.calibrated):
        lead = next(c for c in block.choices if c.rate_class == name)
        tried = settled.tried[name] = {}
        while (rate := next_rate(tried, block.rates)) is not None:
            value = loss(lead, SEARCH_SEED, "validation", rate)
            if value is None:
                break
            tried[rate] = value
        else:
            settled.rates[name] = min(tried, key=lambda r: tried[r])
    candidates = [c for c in block.choices if c.kind in ("uniform", "curve")]
    for c in candidates:
        if c.rate_class in settled.rates:
            value = loss(c, SEARCH_SEED, "validation", settled.rates[c.rate_class])
            if value is not None:
                settled.validated[c.name] = value
    if settled.wanted:
        return settled
    uniforms = [c for c in candidates if c.kind == "uniform"]
    settled.best_uniform = min(uniforms, key=lambda c: settled.validated[c.name], default=None)
    tested = [*filter(None, [settled.best_uniform]), *(c for c in block.choices if c.kind in ("find", "reference"))]
    for seed in UNSEEN_SEEDS[:block.seeds]:
        for c in tested:
            value = loss(c, seed, "test", settled.rates[c.rate_class])
            if value is not None:
                settled.tested.setdefault(c.name, {})[seed] = value
    return settled


def wanted(plan: Sequence[Block], found: Found, tasks: Collection[str]) -> tuple[PlannedTrial, str] | None:
    """The first trial that is missing, with its title, of the blocks on ``tasks``; ``None`` when all are done."""
    return next((settled.wanted[0] for block in plan if block.task in tasks
                 if (settled := settle(block, found)).wanted), None)


def _band(ranks: tuple[int, ...]) -> str:
    mean = sum(ranks) / len(ranks)
    return "rank up to 2" if mean <= 2 else "rank up to 8" if mean <= 8 else "rank above 8"


def uniform_choice(bits: int, rank: int) -> Choice:
    """Return one format of the study and one rank for all layers, in the class of its band of ranks."""
    return Choice(f"uniform {bits} bits, rank {rank}", uniform(LAYERS, FORMATS[bits], rank), "uniform", _band((rank,)))


def committed_finds(limit: str) -> Iterator[Choice]:
    """Committed allocations of searches at 24 steps, and those that guessed exchange rates call best."""
    for find in json.loads(FINDS.read_text(encoding="utf-8")):
        if find["limit"] == limit:
            allocation = Allocation(tuple(FORMATS[b] for b in find["bits"]), tuple(find["ranks"]))
            yield Choice(f"{find['name']}, {limit}", allocation, "find", _band(allocation.ranks))


def _block(task: str, limit: str, steps: int, seeds: int, uniforms: int = 3, finds: int | None = None,
           rates: int = RATES) -> Block:
    """The first ``finds`` of a limit and its first ``uniforms`` candidates."""
    even = (uniform_choice(*choice) for choice in UNIFORM[limit][:uniforms])
    return Block(task, limit, steps, seeds, (*islice(committed_finds(limit), finds), *even), rates=rates)


def _references(task: str, steps: int, seeds: int) -> Block:
    return Block(task, REFERENCES, steps, seeds, (
        Choice("QLoRA (NF4, round-to-nearest, rank 16)", uniform(LAYERS, "nf4", 16), "reference", "QLoRA", "rtn"),
        Choice("LoRA-16 (16-bit base, rank 16)", uniform(LAYERS, "fp16", 16), "reference", "LoRA-16")))


def _effects(steps: int) -> Block:
    """Bits and ranks apart: along the budget of 54 MB, and beside it."""
    small = "54 MB stored"
    named = {choice.name.split(",")[0]: choice for choice in committed_finds(small)}
    order = [uniform_choice(3, 15), named["guessed for 240 steps"], uniform_choice(3, 2),
             named["guessed for 720 steps"], uniform_choice(4, 16), uniform_choice(4, 2),
             named["guessed for 24 steps"], uniform_choice(3, 8), uniform_choice(2, 8)]
    return Block("plays", EFFECTS, steps, 0, tuple(replace(choice, kind="curve") for choice in order), False)


def make_plan() -> tuple[Block, ...]:
    """All blocks in order: the longest and tightest first, references late, GSM8K last."""
    small, stored = LIMITS
    plays, gsm8k = "plays", "gsm8k"
    return (
        *(_block(plays, small, steps, 5, uniforms=1, finds=1, rates=2) for steps in (240, 24)),  # the best at 24 steps
        _effects(240), _effects(24), _block(plays, small, 720, 3, uniforms=2),
        _block(plays, small, 72, 5), _block(plays, stored, 240, 5),
        _references(plays, 240, 5),
        _block(plays, stored, 24, 5), _block(plays, stored, 72, 5), _references(plays, 24, 5),
        _references(plays, 72, 5), _references(plays, 720, 3),
        _block(gsm8k, small, 24, 5), _block(gsm8k, stored, 24, 5), _references(gsm8k, 24, 5),
        _block(gsm8k, small, 240, 5), _block(gsm8k, stored, 240, 5), _references(gsm8k, 240, 5))
