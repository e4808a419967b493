"""The memory plan: uniform choices, each budget's best, common cards, and changes that save memory.

Pure arithmetic over ``MemoryModel``: no weights, no GPU, no torch.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from typing import Any, TypeVar

from qra_bo.memory.advice import (
    MIXING_PAYS,
    Advice,
    advice_on,
    best_uniform,
    embeddings_note,
    largest_rank,
    smallest_side,
    with_embeddings,
)
from qra_bo.memory.budget import describe, largest, mix_text, smallest
from qra_bo.memory.cards import USABLE, Card
from qra_bo.memory.formats import default_format
from qra_bo.memory.model import MemoryModel
from qra_bo.memory.optimizers import OPTIMIZERS
from qra_bo.memory.serving import ANY, CONSUMERS, Consumer, serving_note
from qra_bo.memory.stored import stored_facts
from qra_bo.space import Allocation, SearchSpace, StorageFormat, uniform
from qra_bo.utils.errors import SpaceError, UserError

CARDS_GB = (6, 8, 10, 12, 16, 24, 32, 40, 48, 80)
"""Common cards, by the GiB on the box."""

SHOWN_RANKS = (1, 4, 8, 16, 32)
REFERENCES = {"QLoRA": 4, "LoRA on 16-bit weights": 16}
"""Bits of what people train without a search, at ``REFERENCE_RANK``."""
REFERENCE_RANK = 16
SCHEMA_VERSION = 1
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Row:
    """One allocation priced: its bytes, by part (``memory.model.KEYS``) in the largest phase.

    Args:
        what: E.g. ``"nf4, rank 16"``, or ``"smallest allocation"``.
        allocation: One of ``space``.
        phase: Name of the largest phase, e.g. ``"backward"``.
        file_bytes: Bytes of the whole model as a file, embedding and head included.
        embeddings: Bits of embedding and head.
    """

    what: str
    space: SearchSpace
    allocation: Allocation
    phase: str
    breakdown: Mapping[str, int]
    file_bytes: int
    embeddings: int

    @property
    def fmt(self) -> str | None:
        """Storage format of every unit; ``None`` where units differ, as for ``bits`` and ``rank``."""
        return _common(self.allocation.formats)

    @property
    def bits(self) -> int | None:
        return _common(self.space.bits(self.allocation))

    @property
    def rank(self) -> int | None:
        return _common(self.allocation.ranks)

    @property
    def total(self) -> int:
        return sum(self.breakdown.values())

    def to_json(self) -> dict[str, Any]:
        return {"format": self.fmt, "bits": self.bits, "rank": self.rank, "embeddings": self.embeddings,
                "phase": self.phase, "bytes": self.total, "file_bytes": self.file_bytes,
                "breakdown": dict(self.breakdown)}


@dataclass(frozen=True, slots=True)
class BudgetAnswer:
    """Choices that fit one budget of ``size`` bytes.

    Args:
        memory: Priced with the embedding that a run within this budget has; ``note``: what packing that buys.
        fits: Whether any allocation of the space fits.
        advice: What to expect of it.
        ranks: By format, the largest integer rank, of at most the space's, that fits on every unit; 0 where none does.
        best: The uniform choice of the most bits that fits and that ``max_average_bits`` allows, at its largest rank;
            ``None`` where none fits.
        fractional: Where mixing can pay, the most promising fractional choice that fits, named as ``allocation`` takes
            it; else, and where none fits, ``None``.
    """

    text: str
    size: int
    memory: MemoryModel
    note: str | None
    fits: bool
    advice: Advice
    ranks: Mapping[str, int]
    best: Row | None
    fractional: Row | None


@dataclass(frozen=True, repr=False)
class Plan:
    """Answer of ``task=memory`` and ``qra_bo.plan``.

    Args:
        memory: Decoder, trainer and scope; the embedding is that of the smallest budget.
        budgets: Each budget's answer, in the order given.
        uniform: Uniform choices: by format, then by rank.
        least: The smallest allocation of the space; ``least_is``: its bits and ranks in words.
        most: Bytes of the largest allocation.
        cards: By card in GB, the uniform choice with the most bits, then the most rank, whose training fits beside the
            headroom, in any scope.
        levers: Bytes needed by changes of the configuration that lower those of ``least``, the most saving first.
        card: The card that the plan is for; ``None`` where none is named.
        references: What people train without a search: QLoRA, and LoRA on 16-bit weights, at rank 16, both with
            embedding and head in 16 bits.
        consumer: Program that the result is for.
        serving: What loads the result, in words.
        stored: What ``memory.stored.stored_facts`` says of the codes of a file; ``None`` where codes are chosen.
    """

    memory: MemoryModel
    n_units: int
    budgets: tuple[BudgetAnswer, ...]
    uniform: tuple[Row, ...]
    references: tuple[Row, ...]
    least: Row
    least_is: str
    most: int
    cards: Mapping[int, Row | None]
    levers: Mapping[str, int]
    card: Card | None = None
    consumer: Consumer = CONSUMERS[ANY]
    serving: str = ""
    stored: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        best = ", ".join(f"{answer.text}: {'nothing fits' if not answer.fits else 'mixed allocations only'}"
                         if answer.best is None else f"{answer.text}: {answer.best.what}" for answer in self.budgets)
        return f"Plan({self.memory.spec.name}, {self.n_units} units, {best})"

    @property
    def fits(self) -> bool:
        """Whether something fits every budget."""
        return all(answer.fits for answer in self.budgets)

    @property
    def tightest(self) -> int:
        """Bytes of the smallest budget."""
        return min(answer.size for answer in self.budgets)

    def to_json(self) -> dict[str, Any]:
        """Return the whole plan, in bytes."""
        spec, shape = self.memory.spec, self.memory.shape
        return {
            "schema_version": SCHEMA_VERSION, "model": spec.name, "scope": self.memory.scope,
            "serve": self.consumer.name, "serving": self.serving, "device": shape.device,
            "parameters": {"linears": spec.linear_numel, "other": spec.other_numel}, "units": self.n_units,
            "stored": self.stored,
            "train": {"batch": shape.batch, "accumulate": shape.accumulate, "length": shape.length,
                      "checkpointing": shape.checkpointing, "logits_chunk": shape.logits_chunk,
                      "compute_bits": 8 * shape.compute_dtype_bytes, "optimizer": shape.optimizer,
                      "embeddings": shape.embeddings},
            "allowance": asdict(self.memory.effective_allowance), "fits": self.fits,
            "budgets": [{"text": b.text, "bytes": b.size, "fits": b.fits,
                         "embeddings": b.memory.shape.embeddings, "advice": asdict(b.advice),
                         "largest_uniform_rank": dict(b.ranks),
                         "best_uniform": b.best and b.best.to_json(), "fractional": b.fractional and {
                             "allocation": b.fractional.what, **b.fractional.to_json()}} for b in self.budgets],
            "uniform": [row.to_json() | {"fits": [b.text for b in self.budgets if row.total <= b.size]}
                        for row in self.uniform],
            "references": [{"what": row.what} | row.to_json() for row in self.references],
            "smallest": {"allocation": self.least_is, **self.least.to_json()}, "largest_bytes": self.most,
            "cards": [{"gb": gb, "best_uniform": row and row.to_json()} for gb, row in self.cards.items()],
            "levers": [{"change": change, "needs_bytes": needs, "saves_bytes": self.least.total - needs}
                       for change, needs in self.levers.items()]}


def memory_plan(memory: MemoryModel, space: SearchSpace, budgets: Mapping[str, int], *,
                on_card: MemoryModel | None = None, card: Card | None = None, headroom: int = 0,
                most_bits: float | None = None, consumer: Consumer = CONSUMERS[ANY],
                auto: Collection[str] | None = None,
                fractional: Callable[[MemoryModel, int], Allocation | None] = lambda memory, size: None) -> Plan:
    """Price simple choices, budgets, cards and levers.

    Raises ``SpaceError`` if a format can't store a matrix of the decoder.

    Args:
        memory: Decoder, trainer and scope.
        space: Units and ladders.
        budgets: Bytes by text; at least one.
        on_card: Prices the cards where ``memory`` is of another device than they are.
        card: The card that the plan is for.
        headroom: Bytes of a card that nothing is planned for.
        most_bits: Limit on average code bits; ``None``: none.
        consumer: Program that the result is for; in scope ``stored`` ``memory`` counts the bytes of its files.
        auto: Budgets that choose the bits of the embedding, as every card then does; ``None``: all have ``memory``'s.
        fractional: Returns the most promising fractional choice within some bytes, ``None`` where none fits.
    """
    models = {text: with_embeddings(memory, space, size, most_bits=most_bits) if text in (auto or ()) else memory
              for text, size in budgets.items()}
    memory = models[min(budgets, key=lambda text: budgets[text])]
    table, stored = memory.table(space), stored_facts(memory.spec, space.units)
    need, least = smallest(table, space)
    rows = tuple(_uniform_row(memory, space, fmt, rank) for fmt in space.formats for rank in SHOWN_RANKS
                 if rank <= smallest_side(space))
    answers = [BudgetAnswer(text, size, own, embeddings_note(own, space, size, most_bits),
                            smallest(own.table(space), space)[0] <= size,
                            (advice := advice_on(own, space, size, most_bits=most_bits)),
                            {fmt.name: largest_rank(own, space, fmt, size) for fmt in space.formats},
                            _best(own, space, size, most_bits),
                            None if advice.region != MIXING_PAYS or (mixed := fractional(own, size)) is None else
                            _row(own, space, mixed, mix_text(mixed, space)))
               for (text, size), own in zip(budgets.items(), models.values(), strict=True)]
    totals = {gb: round(USABLE * gb * 2**30) for gb in CARDS_GB}
    if card is not None:  # its own row agrees with its budget
        totals[math.ceil(card.total_bytes / 2**30)] = card.total_bytes
    trained = replace(on_card or memory, scope="peak")  # a card must hold the training, whatever the budget bounds
    left = {gb: total - headroom for gb, total in sorted(totals.items())}
    cards = {gb: _best(trained if auto is None else with_embeddings(trained, space, size, most_bits=most_bits),
                       space, size, most_bits) for gb, size in left.items()}
    return Plan(memory, space.n_units, tuple(answers), rows, tuple(_references(memory, space)),
                _row(memory, space, least, "smallest allocation"), describe(least, space), largest(table, space)[0],
                cards, _levers(memory, space, need, consumer), card, consumer,
                serving_note(consumer, memory, space), stored)


def _common(values: Sequence[_T]) -> _T | None:
    return values[0] if len(set(values)) == 1 else None


def _row(memory: MemoryModel, space: SearchSpace, allocation: Allocation, what: str) -> Row:
    return Row(what, space, allocation, *memory.phase_breakdown(space, allocation),
               memory.file_bytes(space, allocation), memory.shape.embeddings)


def _uniform_row(memory: MemoryModel, space: SearchSpace, fmt: StorageFormat, rank: int) -> Row:
    single = SearchSpace(space.units, (fmt,), (rank,))
    return _row(memory, single, uniform(single.n_units, fmt.name, rank), f"{fmt.name}, rank {rank}")


def _references(memory: MemoryModel, space: SearchSpace) -> Iterator[Row]:
    rank = min(REFERENCE_RANK, smallest_side(space))
    for what, bits in REFERENCES.items():
        with suppress(SpaceError):  # a matrix that the format can't store
            usual = replace(memory, spec=replace(memory.spec, tables=()), shape=replace(memory.shape, embeddings=16))
            yield replace(_uniform_row(usual, space, default_format(bits), rank), what=what)


def _best(memory: MemoryModel, space: SearchSpace, limit: int, most_bits: float | None) -> Row | None:
    """Price the uniform choice of the most bits that fits, at its largest rank; ``None`` where none fits."""
    best = best_uniform(memory, space, limit, most_bits)
    if best is None:
        return None
    row = _uniform_row(memory, space, *best)
    return row if row.embeddings == 16 else replace(row, what=f"{row.what}, embeddings={row.embeddings}")


def _levers(memory: MemoryModel, space: SearchSpace, need: int, consumer: Consumer) -> dict[str, int]:
    """Single changes that lower the bytes of the smallest allocation to these, the most saving first."""
    shape, levers = memory.shape, dict[str, int]()

    def add(change: str, memory: MemoryModel, space: SearchSpace) -> None:
        levers[change] = smallest(memory.table(space), space)[0]

    if memory.scope == "peak":
        chunk = min(shape.logits_chunk or shape.tokens, shape.tokens)
        tried: dict[str, Sequence[Any]] = {
            "checkpointing": [] if shape.checkpointing else [True], "batch": _less(shape.batch, shape.batch // 2, 1),
            "length": [shape.length // 2] if shape.length > 2 else [], "logits_chunk": _less(chunk, chunk // 4),
            "optimizer": [kind for kind in OPTIMIZERS if kind != shape.optimizer]}
        for field, values in tried.items():
            for value in values:
                changed, text = {field: value}, f"train.{field}={str(value).lower()}"
                if field == "batch" and shape.batch % value == 0:  # the optimiser step keeps its sequences
                    changed |= {"accumulate": shape.accumulate * (shape.batch // value)}
                    text += f" train.accumulate={changed['accumulate']}"
                add(text, replace(memory, shape=replace(shape, **changed)), space)
    bits, ranks = sorted({f.bits for f in space.formats}), space.ranks
    if bits[0] > 2 and not memory.spec.linears[0].stored:
        with suppress(UserError):  # where two bits can't be packed into these shapes, they are no lever
            formats = (consumer.default_format(2), *space.formats)
            add(f"bits={_listed((2, *bits))}", memory, replace(space, formats=formats))
    if ranks[0] > 1:
        add(f"ranks={_listed((1, *ranks))}", memory, replace(space, ranks=(1, *ranks)))
    return {change: size for change, size in sorted(levers.items(), key=itemgetter(1)) if size < need}


def _less(value: int, *others: int) -> list[int]:
    return [other for other in dict.fromkeys(others) if 1 <= other < value]


def _listed(values: Sequence[int]) -> str:
    return f"[{','.join(map(str, values))}]"
