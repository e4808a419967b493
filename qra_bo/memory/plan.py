"""``task=memory``: does it fit, on what, and what to change when it does not. No weights, no GPU, no torch."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qra_bo.errors import UserError
from qra_bo.memory.budget import describe, format_size, smallest, uniform_bytes
from qra_bo.memory.formats import default_format
from qra_bo.memory.model import KEYS, MemoryModel
from qra_bo.space import Allocation, Ladder, SearchSpace, StorageFormat, uniform

if TYPE_CHECKING:
    from rich.console import RenderableType

CARDS_GB = (6, 8, 10, 12, 16, 24, 40, 48, 80)
"""Common cards; their names are taken in decimal units, a little less than they have."""

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One uniform choice: its bytes, by part and phase."""

    fmt: str
    bits: int
    rank: int
    phase: str
    total: int
    breakdown: dict[str, int]


@dataclass(frozen=True, slots=True)
class Lever:
    """One change of the configuration and what the smallest allocation needs with it."""

    change: str
    needs: int
    saves: int


@dataclass(frozen=True)
class MemoryPlan:
    """What ``task=memory`` answers.

    Args:
        model: Name of the decoder.
        scope: ``"peak"`` or ``"stored"``.
        budget_text: The budget as written.
        budget: Bytes.
        rows: Uniform choices, bits by rank.
        chosen: An allocation of the user's own, with its bytes, or ``None``.
        smallest_bytes: What the least demanding allocation needs.
        smallest_is: It, in words.
        cards: For each card, GB and the most demanding uniform choice that fits it, or ``None``.
        levers: What saves how much, most first.
        parameters: Parameters of the decoder's linears and of everything else.
    """

    model: str
    scope: str
    budget_text: str
    budget: int
    rows: tuple[Row, ...]
    chosen: Row | None
    smallest_bytes: int
    smallest_is: str
    cards: tuple[tuple[int, Row | None], ...]
    levers: tuple[Lever, ...]
    parameters: tuple[int, int]

    @property
    def fits(self) -> bool:
        """Whether any allocation fits the budget."""
        return self.smallest_bytes <= self.budget

    def to_json(self) -> dict[str, Any]:
        """Everything, in bytes."""
        return {"schema_version": SCHEMA_VERSION, "model": self.model, "scope": self.scope,
                "budget": {"text": self.budget_text, "bytes": self.budget}, "fits": self.fits,
                "smallest": {"bytes": self.smallest_bytes, "allocation": self.smallest_is},
                "uniform": [self._row(row) for row in self.rows],
                "chosen": None if self.chosen is None else self._row(self.chosen),
                "cards": [{"gb": gb, "largest_uniform": None if row is None else self._row(row)}
                          for gb, row in self.cards],
                "levers": [{"change": lever.change, "needs_bytes": lever.needs, "saves_bytes": lever.saves}
                           for lever in self.levers],
                "parameters": {"linears": self.parameters[0], "other": self.parameters[1]}}

    def _row(self, row: Row) -> dict[str, Any]:
        return {"format": row.fmt, "bits": row.bits, "rank": row.rank, "phase": row.phase, "bytes": row.total,
                "feasible": row.total <= self.budget, "breakdown": row.breakdown}


def memory_plan(memory: MemoryModel, space: SearchSpace, budget: int, budget_text: str, *,
                ranks: Sequence[int] | None = None, chosen: Allocation | None = None) -> MemoryPlan:
    """Price uniform choices, cards and levers.

    Args:
        memory: Decoder, trainer and scope.
        space: Units and ladders.
        budget: Bytes (``budget.resolve_budget``).
        budget_text: As written.
        ranks: Ranks to show; the lowest, 4, 16 and the highest of the ladder by default.
        chosen: An allocation to price too; of the space.

    Raises:
        SpaceError: If a format can't store a matrix of the decoder.
    """
    shown = _shown(space.ranks.values) if ranks is None else tuple(ranks)
    rows = tuple(_uniform_row(memory, space, fmt, rank) for fmt in space.formats for rank in shown)
    need, least = smallest(memory.table(space), space)
    cards = tuple((gb, _largest_uniform(memory, space, gb * 10**9)) for gb in CARDS_GB)
    own = None if chosen is None else _row(memory, space, chosen, "mixed", 0, 0)
    return MemoryPlan(memory.spec.name, memory.scope, budget_text, budget, rows, own, need, describe(least, space),
                      cards, tuple(_levers(memory, space, need)),
                      (memory.spec.linear_numel, memory.spec.other_numel))


def _shown(ranks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(r for r in ranks if r in {ranks[0], 4, 16, ranks[-1]})


def _row(memory: MemoryModel, space: SearchSpace, allocation: Allocation, fmt: str, bits: int, rank: int) -> Row:
    phase, parts = memory.phase_breakdown(space, allocation)
    return Row(fmt, bits, rank, phase, sum(parts.values()), parts)


def _uniform_row(memory: MemoryModel, space: SearchSpace, fmt: StorageFormat, rank: int) -> Row:
    single = SearchSpace(space.units, (fmt,), Ladder("ranks", (rank,)))
    return _row(memory, single, uniform(single.n_units, fmt.name, rank), fmt.name, fmt.bits, rank)


def _largest_uniform(memory: MemoryModel, space: SearchSpace, limit: int) -> Row | None:
    """Highest bits that fit with the lowest rank, then the highest rank that fits with them."""
    for fmt in reversed(space.formats):
        fitting = [r for r in space.ranks.values if uniform_bytes(memory, space, fmt, r) <= limit]
        if fitting:
            return _uniform_row(memory, space, fmt, fitting[-1])
    return None


def _levers(memory: MemoryModel, space: SearchSpace, need: int) -> list[Lever]:
    """Single changes that lower what the smallest allocation needs, the most saving first."""
    shape, tried = memory.shape, []
    if memory.scope == "peak":
        if not shape.checkpointing:
            tried.append(("train.checkpointing=true", replace(shape, checkpointing=True)))
        if shape.batch > 1:
            tried.append((f"train.batch={shape.batch // 2}", replace(shape, batch=shape.batch // 2)))
            tried.append(("train.batch=1", replace(shape, batch=1)))
        if shape.length > 2:
            tried.append((f"train.length={shape.length // 2}", replace(shape, length=shape.length // 2)))
        chunk = min(shape.logits_chunk or shape.tokens, shape.tokens)
        if chunk > 1:
            tried.append((f"train.logits_chunk={max(1, chunk // 4)}", replace(shape, logits_chunk=max(1, chunk // 4))))
    levers = [_lever(change, replace(memory, shape=other), space, need) for change, other in tried]
    lower = _with_two_bits(space)
    if lower is not None:
        with suppress(UserError):  # where two bits can't be packed into these shapes, they are no lever
            levers.append(_lever("bits with 2 added", memory, lower, need))
    if space.ranks.values[0] > 1:
        levers.append(_lever("ranks with 1 added", memory,
                             replace(space, ranks=Ladder("ranks", (1, *space.ranks.values))), need))
    unique = {lever.change: lever for lever in levers if lever.saves > 0}
    return sorted(unique.values(), key=lambda lever: -lever.saves)


def _lever(change: str, memory: MemoryModel, space: SearchSpace, need: int) -> Lever:
    total, _ = smallest(memory.table(space), space)
    return Lever(change, total, need - total)


def _with_two_bits(space: SearchSpace) -> SearchSpace | None:
    if space.formats[0].bits <= 2:
        return None
    return replace(space, formats=(default_format(2), *space.formats))


def render(plan: MemoryPlan) -> "RenderableType":
    """The plan as tables for a terminal (loads rich)."""
    from rich.console import Group
    from rich.text import Text

    linears, other = plan.parameters
    verdict = "fits" if plan.fits else "does NOT fit"
    head = Text(f"{plan.model}: {(linears + other) / 1e9:.2f} billion parameters, {linears / 1e9:.2f} billion of them "
                f"in linears that can be quantised; scope {plan.scope}. The budget {plan.budget_text} is "
                f"{format_size(plan.budget)}: the smallest allocation ({plan.smallest_is}) needs "
                f"{format_size(plan.smallest_bytes)} and {verdict}.")
    parts = [head, _uniform_table(plan), _cards_table(plan)]
    if plan.levers:
        parts.append(_levers_table(plan))
    return Group(*parts)


def _table(title: str, columns: Sequence[str]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _uniform_table(plan: MemoryPlan) -> Any:
    used = [key for key in KEYS if any(row.breakdown[key] for row in plan.rows)]
    names = {"quant_metadata": "metadata", "unquantised": "unquant.", "activations": "activ."}
    table = _table("Uniform choices", ["format", "rank", *(names.get(key, key) for key in used), "total", "fits"])
    for row in (*plan.rows, *([plan.chosen] if plan.chosen else [])):
        fits = "yes" if row.total <= plan.budget else "no"
        table.add_row(row.fmt, str(row.rank or "-"), *(format_size(row.breakdown[key]) for key in used),
                      format_size(row.total), fits)
    return table


def _cards_table(plan: MemoryPlan) -> Any:
    table = _table("Most bits, then most rank, of a uniform choice that fits", ["card", "format", "rank", "needs"])
    for gb, row in plan.cards:
        table.add_row(f"{gb} GB", *(("nothing", "", "") if row is None else
                                    (row.fmt, str(row.rank), format_size(row.total))))
    return table


def _levers_table(plan: MemoryPlan) -> Any:
    table = _table("What lowers the smallest allocation", ["change", "then needs", "saves"])
    for lever in plan.levers:
        table.add_row(lever.change, format_size(lever.needs), format_size(lever.saves))
    return table
