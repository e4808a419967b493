"""A memory plan as tables for a terminal."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qra_bo.memory.budget import format_size
from qra_bo.memory.model import KEYS
from qra_bo.memory.plan import BudgetAnswer, MemoryPlan, Row


@dataclass(frozen=True, slots=True)
class TraceCheck:
    """A prediction beside the peak of a traced training step, in bytes; its phase, and the seconds that it took."""

    what: str
    predicted_bytes: int
    traced_bytes: int
    phase: str
    seconds: float


def render(plan: MemoryPlan) -> RenderableType:
    """Uniform choices, each budget's largest ranks, where the bytes go, cards; levers where nothing fits a budget."""
    parts: list[RenderableType] = [Text(_head(plan)), _uniform(plan), Text(_extremes(plan)), _budgets(plan),
                                   _breakdown(plan), _cards(plan)]
    if not plan.fits:
        parts.append(_levers(plan))
    return Group(*parts)


def _head(plan: MemoryPlan) -> str:
    spec, shape = plan.memory.spec, plan.memory.shape
    what = "stored bytes" if plan.memory.scope == "stored" else (
        f"peak memory of training on {shape.device}, {8 * shape.compute_dtype_bytes}-bit compute, "
        f"{shape.batch} x {shape.length} tokens{', checkpointing' if shape.checkpointing else ''}"
        f"{'' if shape.optimizer == 'adamw' else f', {shape.optimizer}'}{_allowance(plan)}")
    return (f"{spec.name}: {(spec.linear_numel + spec.other_numel) / 1e6:,.1f} M parameters, of them "
            f"{spec.linear_numel / 1e6:,.1f} M in linears that are quantised; {plan.n_units} units; {what}")


def _allowance(plan: MemoryPlan) -> str:
    """Where the device was measured: what its allocator adds, and from how many peaks that is known."""
    allowance = plan.memory.allowance
    return "" if allowance is None else (f"; its allocator adds {allowance.share_ppm / 10**4:.2f} % of transient bytes "
                                         f"and {format_size(allowance.fixed_bytes)} ({allowance.measurements} measured "
                                         "peaks)")


def _extremes(plan: MemoryPlan) -> str:
    return (f"Allocations of this space need {format_size(plan.least.total)} ({plan.least_is}) to "
            f"{format_size(plan.most)}.")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _uniform(plan: MemoryPlan) -> Table:
    by_format: dict[str, list[Row]] = {}
    for row in plan.uniform:
        by_format.setdefault(str(row.fmt), []).append(row)
    big = max(row.total for row in plan.uniform) >= 10**9
    unit, scale, digits = ("GB", 10**9, 2) if big else ("MB", 10**6, 1)
    ranks = [f"rank {row.rank}" for row in next(iter(by_format.values()))]
    table = _table(f"The same choice for every unit, in {unit}; * fits {format_size(plan.tightest)}",
                   ["format", "bits", *ranks])
    for fmt, rows in by_format.items():
        table.add_row(fmt, str(rows[0].bits),
                      *(f"{r.total / scale:.{digits}f}{'*' if r.total <= plan.tightest else ' '}" for r in rows))
    return table


def _named(answer: BudgetAnswer) -> str:
    size = format_size(answer.size)
    return size if size.replace(".00", "").replace(" ", "") == answer.text.replace(" ", "") else \
        f"{answer.text} = {size}"


def _budgets(plan: MemoryPlan) -> Table:
    table = _table("Largest uniform rank that fits", ["budget", *plan.budgets[0].ranks])
    for answer in plan.budgets:
        table.add_row(_named(answer), *(str(rank or "none") for rank in answer.ranks.values()))
    return table


def _breakdown(plan: MemoryPlan) -> Table:
    """Of each budget's best uniform choice; of the smallest allocation where none fits a budget."""
    rows = {row.what: row for row in (answer.best or plan.least for answer in plan.budgets)}
    table = _table("Where the bytes go", ["", *rows])
    for key in (key for key in KEYS if any(row.breakdown[key] for row in rows.values())):
        table.add_row(key.replace("_", " "), *(format_size(row.breakdown[key]) for row in rows.values()))
    table.add_section()
    table.add_row("in all", *(format_size(row.total) for row in rows.values()))
    table.add_row("decided by", *(row.phase for row in rows.values()))
    return table


def _cards(plan: MemoryPlan) -> Table:
    """Neighbouring cards that hold the same choice share a line."""
    table = _table("Uniform choice of these ladders that a card holds: most bits, then rank",
                   ["card", "choice", "needs"])
    for row, cards in itertools.groupby(plan.cards.items(), key=lambda item: item[1]):
        sizes = [gb for gb, _ in cards]
        name = f"{sizes[0]} GB" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} GB"
        table.add_row(name, *(("nothing", "") if row is None else (row.what, format_size(row.total))))
    return table


def _levers(plan: MemoryPlan) -> Table:
    table = _table("What lowers the smallest allocation", ["change", "then needs", "saves"])
    for lever in plan.levers:
        table.add_row(lever.change, format_size(lever.needs), format_size(lever.saves))
    return table


def render_checks(checks: Sequence[TraceCheck]) -> RenderableType:
    """Predictions beside traced peaks."""
    table = _table("Against a training step traced storage by storage, with no weights",
                   ["allocation", "predicted", "traced", "difference", "phase", "seconds"])
    for c in checks:
        table.add_row(c.what, format_size(c.predicted_bytes), format_size(c.traced_bytes),
                      f"{c.predicted_bytes / c.traced_bytes - 1:+.2%}", c.phase, f"{c.seconds:.1f}")
    return table
