"""Plan of the length study: blocks of trials in the order in which they are made, and what a block wants next.

A block compares allocations within one limit after one number of steps. Learning rates are calibrated in every block
with equal effort: three rates for each class of allocations (bits, band of ranks), on the validation split at the
search's training seed. The best uniform choice is the one with the least validation loss at its class's rate. Finds,
best uniform choice and references are then trained on unseen seeds and evaluated on the test split, all of them on one
seed before the next. A block without seeds only calibrates and validates: the table of curves.
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.length.trials import Found, PlannedTrial
from qra_bo.space import Allocation, uniform
from qra_bo.study.options import training_seeds

FINDS = Path(__file__).with_name("finds.json")
LAYERS = 30
FORMATS = {2: "hqq2", 3: "hqq3", 4: "nf4", 5: "hqq5-g128", 6: "hqq6-g128", 8: "int8", 16: "fp16"}
FIRST_RATES = (0.5, 1.0)
RATES = 3
"""Rates tried in every class: the two of ``FIRST_RATES``, then half or twice, on the side of the better of them."""
CURVES = "table of curves"
REFERENCES = "references"
LIMITS = {"54 MB stored": ("uniform:3,8", "stored"), "uniform:4,16 stored": ("uniform:4,16", "stored"),
          "uniform:4,4 peak": ("uniform:4,4", "peak")}
"""Budget and memory scope of every limit; 54 MB are those of 3 bits with rank 8."""
UNIFORM = {"54 MB stored": ((3, 8), (3, 4), (3, 2)), "uniform:4,16 stored": ((4, 16), (4, 8)),
           "uniform:4,4 peak": ((4, 4), (4, 2))}
"""Bits and rank of the uniform candidates; the table of curves has fewer bits at larger ranks, which are far behind."""
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
    """Choices compared within ``limit`` after ``steps``, on ``seeds`` unseen training seeds."""

    task: str
    limit: str
    steps: int
    seeds: int
    choices: tuple[Choice, ...]

    @property
    def name(self) -> str:
        """Title."""
        return f"{self.task}, {self.limit}, {self.steps} steps"

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
        uniform_losses: Validation loss of the uniform candidates at their classes' rates, by name.
        best_uniform: Best uniform choice once all candidates are known.
        wanted: Trials that are missing and can be named already, with the title of each, in order.
    """

    block: Block
    tried: dict[str, dict[float, float]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    uniform_losses: dict[str, float] = field(default_factory=dict)
    best_uniform: Choice | None = None
    wanted: list[tuple[PlannedTrial, str]] = field(default_factory=list)

    @property
    def tested(self) -> tuple[Choice, ...]:
        """Choices that are trained on unseen seeds."""
        best = () if self.best_uniform is None else (self.best_uniform,)
        return best + tuple(c for c in self.block.choices if c.kind in ("find", "reference"))


def next_rate(tried: Mapping[float, float]) -> float | None:
    """The rate to try next, or ``None`` after ``RATES`` of them."""
    for rate in FIRST_RATES:
        if rate not in tried:
            return rate
    if len(tried) >= RATES:
        return None
    return min(tried) / 2 if tried[min(tried)] <= tried[max(tried)] else max(tried) * 2


def settle(block: Block, found: Found) -> Settled:
    """Follow the rules of this module as far as the finished trials go."""
    settled = Settled(block)
    for name in dict.fromkeys(c.rate_class for c in block.choices):
        lead, tried = next(c for c in block.choices if c.rate_class == name), settled.tried.setdefault(name, {})
        while (rate := next_rate(tried)) is not None:
            trial = block.trial(lead, SEARCH_SEED, "validation", rate)
            if trial.key not in found:
                settled.wanted.append((trial, lead.name))
                break
            loss = found[trial.key]["loss"]
            tried[rate] = math.inf if loss is None else float(loss)
        else:
            settled.rates[name] = min(tried, key=lambda r: tried[r])
    candidates = [c for c in block.choices if c.kind in ("uniform", "curve")]
    for choice in candidates:
        if choice.rate_class in settled.rates:
            trial = block.trial(choice, SEARCH_SEED, "validation", settled.rates[choice.rate_class])
            if trial.key not in found:
                settled.wanted.append((trial, choice.name))
            else:
                loss = found[trial.key]["loss"]
                settled.uniform_losses[choice.name] = math.inf if loss is None else float(loss)
    uniforms = [c for c in candidates if c.kind == "uniform"]
    if uniforms and all(c.name in settled.uniform_losses for c in uniforms):
        settled.best_uniform = min(uniforms, key=lambda c: settled.uniform_losses[c.name])
    if not settled.wanted:
        settled.wanted = [(trial, choice.name) for seed in UNSEEN_SEEDS[:block.seeds] for choice in settled.tested
                          if (trial := block.trial(choice, seed, "test", settled.rates[choice.rate_class])).key
                          not in found]
    return settled


def wanted(plan: Sequence[Block], found: Found, tasks: Collection[str]) -> tuple[PlannedTrial, str] | None:
    """The first trial that is missing, with its title, of the blocks on ``tasks``; ``None`` when all are done."""
    return next((settled.wanted[0] for block in plan if block.task in tasks
                 if (settled := settle(block, found)).wanted), None)


def _band(ranks: tuple[int, ...]) -> str:
    mean = sum(ranks) / len(ranks)
    return "rank up to 2" if mean <= 2 else "rank up to 8" if mean <= 8 else "rank above 8"


def _uniform(bits: int, rank: int, kind: str = "uniform") -> Choice:
    return Choice(f"uniform {bits} bits, rank {rank}", uniform(LAYERS, FORMATS[bits], rank), kind,
                  f"uniform {bits} bits, {_band((rank,))}")


def _finds(limit: str) -> Iterator[Choice]:
    """Committed finds of searches at 24 steps, the longer search first."""
    for find in sorted(json.loads(FINDS.read_text(encoding="utf-8")), key=lambda f: str(f["effort"])):
        if find["limit"] == limit:
            allocation = Allocation(tuple(FORMATS[b] for b in find["bits"]), tuple(find["ranks"]))
            yield Choice(f"find of a {find['effort']} search, {limit}", allocation, "find",
                         f"mixed, {_band(allocation.ranks)}")


def _block(task: str, limit: str, steps: int, seeds: int, uniforms: int = 3) -> Block:
    return Block(task, limit, steps, seeds,
                 (*_finds(limit), *(_uniform(*choice) for choice in UNIFORM[limit][:uniforms])))


def _references(task: str, steps: int, seeds: int) -> Block:
    return Block(task, REFERENCES, steps, seeds, (
        Choice("QLoRA (NF4, round-to-nearest, rank 16)", uniform(LAYERS, "nf4", 16), "reference", "QLoRA", "rtn"),
        Choice("LoRA-16 (16-bit base, rank 16)", uniform(LAYERS, "fp16", 16), "reference", "LoRA-16")))


def _curves() -> Block:
    """At least 48 allocations after 240 steps: uniform bits x ranks, the finds, mixed ones with small, large and mixed
    ranks. Rates are calibrated on uniform 4 bits for each band of ranks; the rest come in a random order, so that any
    beginning of it is a sample of all."""
    random = np.random.default_rng(28)
    pairs = [(bits, rank) for bits in (2, 3, 4, 5) for rank in (1, 2, 4, 8, 16, 24)] + [(8, 1), (8, 8), (8, 16)]
    leads = [(4, 1), (4, 8), (4, 16)]
    rest = [(c.name, c.allocation) for bits, rank in pairs if (bits, rank) not in leads
            for c in (_uniform(bits, rank),)]
    rest += [(c.name, c.allocation) for limit in LIMITS for c in _finds(limit)]
    for i in range(18):
        low, high = ((2, 4), (3, 4), (3, 5))[i % 3]
        share = random.uniform(0.2, 0.8)
        bits = [high if random.random() < share else low for _ in range(LAYERS)]
        ranks = [1] * LAYERS if i < 6 else [8] * LAYERS if i < 12 else [int(r) for r in random.choice(
            (1, 2, 4, 8, 16, 24), LAYERS)]
        rest.append((f"mixed {i}, {low} and {high} bits", Allocation(tuple(FORMATS[b] for b in bits), tuple(ranks))))
    order = [*((f"uniform {b} bits, rank {r}", uniform(LAYERS, FORMATS[b], r)) for b, r in leads),
             *(rest[i] for i in random.permutation(len(rest)))]
    return Block("plays", CURVES, 240, 0, tuple(Choice(name, a, "curve", _band(a.ranks)) for name, a in order))


def make_plan() -> tuple[Block, ...]:
    """All blocks in order: the longest and tightest first, references late, GSM8K last."""
    small, stored, peak = LIMITS
    plays, gsm8k = "plays", "gsm8k"
    return (
        _block(plays, small, 720, 3, uniforms=2), _block(plays, small, 240, 5), _block(plays, small, 24, 5),
        _block(plays, small, 72, 5), _block(plays, stored, 240, 5), _block(plays, peak, 240, 5),
        _references(plays, 240, 5), _curves(),
        _block(plays, stored, 24, 5), _block(plays, stored, 72, 5), _references(plays, 24, 5),
        _references(plays, 72, 5), _references(plays, 720, 3),
        _block(gsm8k, small, 24, 5), _block(gsm8k, stored, 24, 5), _references(gsm8k, 24, 5),
        _block(gsm8k, small, 240, 5), _block(gsm8k, stored, 240, 5), _references(gsm8k, 240, 5))
