"""Methods that take the adapter rank as given: LoftQ, LQ-LoRA, AMQ + LoRA, and AdaLoRA with its target rank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.table1.adalora_memory import adalora_bytes, fit_adalora
from bench.table1.amq import AMQ, AMQOptions
from bench.table1.limits import Limit
from bench.table1.recipe import Recipe
from bench.table1.rows import RANK, Found, Row, largest_fitting_rank
from bench.table1.session import Session
from qra_bo.memory.budget import uniform_bytes
from qra_bo.memory.formats import parse_format
from qra_bo.space import Allocation, FloatArray, IntArray, uniform
from qra_bo.space.knapsack import solve_knapsack
from qra_bo.study.cost import FORWARD_SHARE
from qra_bo.utils.errors import BudgetError

FOUR_BIT = "nf4"
ADALORA_RATE = 4.0
"""AdaLoRA needs higher learning rates than LoRA, as its values start at zero between small factors."""
LQ_LORA_RATE = 0.25
"""LQ-LoRA needs lower learning rates than LoRA, as its adapters start from the largest directions of the weights."""
SENSITIVITY = "quantization_sensitivity"
"""Events of measured divergences."""
ITERATIONS = 1
"""Alternations for LQ-LoRA's table of errors; more seldom change the order of formats and units."""
Bits = Callable[[int], tuple[tuple[str, ...], float]]
"""Formats of every unit at a given rank, and the cost of finding them."""


def rank_choices(session: Session, limit: Limit) -> list[int]:
    """Return the ranks to try: the largest of at most 16 with which NF4 fits, its half, and so on; if NF4 fits with
    none: 1, 2, 4, and so on."""
    top = largest_fitting_rank(session, limit, FOUR_BIT, RANK)
    ranks = [top // 2**i if top else min(2**i, RANK) for i in range(session.options.rank_choices)]
    return list(dict.fromkeys(r for r in ranks if r >= 1))


def choose_rank(session: Session, limit: Limit, init: str, bits: Bits) -> Found:
    """Return the rank with the least validation loss at the rule's own learning rate; the trials are charged.

    Raises:
        BudgetError: If none is within the limit.
    """
    tried: list[tuple[float, int, Recipe]] = []
    cost, problem = 0.0, "no rank is"
    ranks = rank_choices(session, limit)
    for rank in ranks:
        try:
            formats, spent = bits(rank)
        except BudgetError as error:
            problem = str(error)
            continue
        recipe = Recipe(Allocation(formats, (rank,) * len(formats)), init)
        cost += spent
        if len(ranks) > 1:
            done = session.evaluate(recipe, 1.0, session.train_seed, "validation")
            cost += done["training_tokens"] + FORWARD_SHARE * done["forward_tokens"]
            tried.append((float("inf") if done["loss"] is None else float(done["loss"]), -rank, recipe))
        else:
            tried.append((0.0, -rank, recipe))
    if not tried:
        raise BudgetError(f"within {limit.name}: {problem}")
    best = min(tried, key=lambda t: t[:2])[2]
    note = f"rank {best.allocation.ranks[0]} of {sorted(-t[1] for t in tried)} by validation loss"
    return Found(best, cost, note if len(tried) > 1 else "")


def base_formats(session: Session) -> list[str]:
    """Return the formats of a uniform base, the most bits first: NF4, then those of the ladder below it."""
    below = [f.name for f in reversed(session.space.formats) if f.bits < parse_format(FOUR_BIT).bits]
    return [FOUR_BIT, *below]


def on_most_bits(session: Session, limit: Limit, make: Callable[[str], Found]) -> Found:
    """Return the configuration on NF4 everywhere, or on the most bits below it that are within ``limit``.

    Args:
        session: Of the table.
        limit: Limit on memory and bits.
        make: From the base's format to a configuration; raises ``BudgetError`` if it has none.

    Raises:
        BudgetError: If no base fits; the message is that of the lowest.
    """
    problem = ""
    for fmt in base_formats(session):
        if limit.max_average_bits is not None and parse_format(fmt).bits > limit.max_average_bits:
            problem = f"{fmt} has more bits than {limit.name} admits"
            continue
        try:
            found = make(fmt)
        except BudgetError as error:
            problem = str(error)
            continue
        other = "" if fmt == FOUR_BIT else f"on {fmt}, as NF4 does not fit"
        return replace(found, note=", ".join(filter(None, (found.note, other))))
    raise BudgetError(problem)


@dataclass(frozen=True)
class LoftQ(Row):
    """NF4 everywhere, or the most bits below that fit, with the largest rank of at most 16 that fits; the adapters are
    initialised from the quantisation error."""

    def find(self, session: Session, limit: Limit) -> Found:
        def on(fmt: str) -> Found:
            rank = largest_fitting_rank(session, limit, fmt, RANK)
            if not rank:
                raise BudgetError(f"{fmt} with rank 1 is not within {limit.name}")
            return Found(Recipe(uniform(session.space.n_units, fmt, rank), "loftq"), 0.0)

        return on_most_bits(session, limit, on)


@dataclass(frozen=True)
class LQLoRA(Row):
    """Bits by the integer program over decomposition errors; adapters and base come from the decomposition."""

    def signature(self, session: Session) -> str:
        return f"ranks={session.options.rank_choices}"

    def equivalents(self, session: Session, limit: Limit) -> float:
        return float(session.options.rank_choices)

    def find(self, session: Session, limit: Limit) -> Found:
        def bits(rank: int) -> tuple[tuple[str, ...], float]:
            row = solve_knapsack(decomposition_errors(session, rank)[:, :, None], session.costs_at(limit, rank),
                                 session.budget_bytes(limit))
            return names(session, row[:session.space.n_units]), 0.0

        return choose_rank(session, limit, "lq_lora", bits)


def decomposition_errors(session: Session, rank: int) -> FloatArray:
    """Return LQ-LoRA's objective by unit and format, ``L x F``."""
    event = session.results.once("errors", f"r{rank}", lambda: session.call(
        "bench.table1.base_errors:decomposition_errors", {"rank": rank, "iterations": ITERATIONS}))
    return np.array(event["errors"], dtype=np.float64)


def names(session: Session, row: Sequence[int] | IntArray) -> tuple[str, ...]:
    """Return the format names of ``L`` positions on the ladder."""
    return tuple(session.space.formats[int(q)].name for q in row)


def amq_bits(session: Session, limit: Limit, rank: int, beyond: int = 0) -> tuple[tuple[str, ...], float]:
    """Return AMQ's bits with one rank everywhere.

    Args:
        session: Of the table.
        limit: Limit on memory and bits.
        rank: Rank of all units.
        beyond: Bytes that the adapters need beyond those of LoRA with that rank.

    Returns:
        Formats of the units, and the cost of the measurements, beside the profile's.

    Raises:
        BudgetError: If even the lowest bits are not within the limit.
    """
    results, n = session.results, session.options.amq_evaluations
    budget = session.budget_bytes(limit)
    costs = session.costs_at(limit, rank)
    costs = replace(costs, phases=tuple(p if p.name == "codes" else replace(p, fixed=p.fixed + beyond)
                                        for p in costs.phases))
    spent = 0

    def measure(rows: IntArray) -> FloatArray:
        nonlocal spent
        chosen = [list(names(session, row)) for row in rows]
        keys = [Allocation(tuple(c), (0,) * len(c)).fingerprint for c in chosen]
        new = [c for c, key in zip(chosen, keys, strict=True) if results.find(SENSITIVITY, key) is None]
        if new:
            found = session.call("bench.table1.base_errors:joint_sensitivity", {"choices": new})
            each = round(found["forward_tokens"] / (1 + len(new)))
            for c, jsd in zip(new, found["jsd"], strict=True):
                fields = {"jsd": jsd, "forward_tokens": each}
                results.once(SENSITIVITY, Allocation(tuple(c), (0,) * len(c)).fingerprint, fields.copy)
        events = [results.once(SENSITIVITY, key, dict) for key in keys]
        spent += sum(int(e["forward_tokens"]) for e in events)
        return np.array([float(e["jsd"]) for e in events])

    options = AMQOptions(evaluations=n, initial=max(2, n // 3))
    rng = np.random.default_rng(np.random.SeedSequence([session.config.seed, *b"amq", rank]))
    result = AMQ(costs, budget, session.profile().profile.quantization_kl, options, rng).run(measure)
    return names(session, result.choice), FORWARD_SHARE * spent


def profile_cost(session: Session) -> float:
    """Return the cost of the profile, which AMQ begins with whatever the number of ranks."""
    profile = session.profile()
    return profile.training_tokens + FORWARD_SHARE * profile.forward_tokens


@dataclass(frozen=True)
class AMQLoRA(Row):
    """Bits by AMQ's search on quantisation sensitivity, then LoRA of one rank."""

    def signature(self, session: Session) -> str:
        return f"evaluations={session.options.amq_evaluations},ranks={session.options.rank_choices}"

    def equivalents(self, session: Session, limit: Limit) -> float:
        return session.options.rank_choices * (1.0 + amq_equivalents(session))

    def find(self, session: Session, limit: Limit) -> Found:
        found = choose_rank(session, limit, "kaiming", lambda rank: amq_bits(session, limit, rank))
        return replace(found, cost=found.cost + profile_cost(session))


def amq_equivalents(session: Session) -> float:
    """Return the rough full-trial equivalents of AMQ's measurements."""
    c = session.config
    tokens = FORWARD_SHARE * session.options.amq_evaluations * c.data.calibration * c.train.length
    return tokens / (c.fidelity.high * c.train.step_tokens + FORWARD_SHARE * c.eval.sequences * c.train.length)


@dataclass(frozen=True)
class AdaLoRA(Row):
    """AdaLoRA on NF4 everywhere, or on the most bits below that fit: the largest target of at most 16 whose initial
    rank, 1.5 times the target, fits."""

    def find(self, session: Session, limit: Limit) -> Found:
        setting, n = session.setting_of(limit), session.space.n_units

        def on(fmt: str) -> Found:
            initial, target = fit_adalora(setting.memory, setting.space, (fmt,) * n, session.budget_bytes(limit), RANK)
            return Found(Recipe(uniform(n, fmt, target), "adalora", initial), 0.0,
                         f"initial rank {initial}, target {target}")

        return on_most_bits(session, limit, on)


@dataclass(frozen=True)
class AMQAdaLoRA(Row):
    """Bits by AMQ, then AdaLoRA with the ranks that fit on NF4, or the least ones if none fits.

    PEFT's AdaLoRA does not support HQQ layers; this one trains on every backend.
    """

    def signature(self, session: Session) -> str:
        return f"evaluations={session.options.amq_evaluations}"

    def equivalents(self, session: Session, limit: Limit) -> float:
        return amq_equivalents(session)

    def find(self, session: Session, limit: Limit) -> Found:
        setting, n = session.setting_of(limit), session.space.n_units
        memory, space, budget = setting.memory, setting.space, session.budget_bytes(limit)
        nf4 = parse_format(FOUR_BIT)
        try:
            initial, target = fit_adalora(memory, space, (FOUR_BIT,) * n, budget, RANK)
        except BudgetError:
            initial, target = 2, 1
        # AdaLoRA's bytes beyond those of LoRA with its initial rank do not depend on the formats.
        beyond = adalora_bytes(memory, space, (FOUR_BIT,) * n, initial, target) - uniform_bytes(memory, space, nf4,
                                                                                               initial)
        formats, cost = amq_bits(session, limit, initial, beyond)
        return Found(Recipe(Allocation(formats, (target,) * n), "adalora", initial), cost + profile_cost(session),
                     f"initial rank {initial}, target {target}")


GIVEN_RANK: tuple[Row, ...] = (
    AdaLoRA("adalora", "AdaLoRA", lr_centre=ADALORA_RATE), LoftQ("loftq", "LoftQ"),
    LQLoRA("lq_lora", "LQ-LoRA, bits by integer program", lr_centre=LQ_LORA_RATE),
    AMQLoRA("amq_lora", "AMQ + LoRA"),
    AMQAdaLoRA("amq_adalora", "AMQ + AdaLoRA", lr_centre=ADALORA_RATE))
