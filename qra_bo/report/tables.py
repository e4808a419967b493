"""Tables for the terminal: the plan before a run, the result after it. Plain lines where there is no terminal."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from qra_bo.report import story
from qra_bo.report.data import ReportData
from qra_bo.report.guide import next_steps
from qra_bo.report.text import DASH, describe_allocation, duration, number, rough, size
from qra_bo.utils.redact import printable

TONES = {"better": "green", "equal": "yellow", "open": "cyan"}


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One part of the work ahead.

    Args:
        what: E.g. ``"sensitivity profile"``.
        cost: In training tokens; a forward-only token counts 1/3.
        seconds: Estimated wall time, or ``None`` where nothing is known of the device's speed yet.
    """

    what: str
    cost: float
    seconds: float | None


def print_plan(console: Console, title: str, rows: Sequence[PlanRow], high_fidelity_cost: float) -> None:
    """Print what is about to be done and what it is expected to take.

    Args:
        console: Where to print.
        title: E.g. ``"smollm2_135m within 74.3 MB, effort=quick"``.
        rows: Parts in the order in which they run.
        high_fidelity_cost: Training tokens of one high-fidelity evaluation.
    """
    total = PlanRow("in all", sum(r.cost for r in rows),
                    None if any(r.seconds is None for r in rows) else sum(r.seconds or 0.0 for r in rows))
    lines = [(r.what, f"{r.cost:,.0f}", f"{r.cost / high_fidelity_cost:.1f}",
              "not known yet" if r.seconds is None else f"about {rough(r.seconds)}") for r in (*rows, total)]
    if not console.is_terminal:
        _plain(console, f"Plan: {title}")
        for what, cost, equivalents, seconds in lines:
            _plain(console, f"  {what}: {cost} training tokens = {equivalents} high-fidelity evaluations, {seconds}")
        return
    table = Table(title=f"Plan: {escape(title)}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what")
    for column in ("training\ntokens", "= evalua-\ntions", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines[:-1]:
        table.add_row(*map(escape, line))
    table.add_section()
    table.add_row(*map(escape, lines[-1]), style="bold")
    console.print(table)


def print_result(console: Console, d: ReportData, folder: Path, files: Sequence[str] = ()) -> None:
    """Print the answer, the comparison, bits and ranks by unit, cost, files and what to do next.

    Args:
        console: Where to print; plain lines unless it is a terminal.
        d: The run.
        folder: Its folder, as the user should type it.
        files: What lies there and is named.
    """
    head = story.answer(d)
    rows = story.comparison(d)
    if console.is_terminal:
        text = f"{escape(head.sentence)}\n[bold]{head.figure}[/bold]  {head.interval}".rstrip()
        if d.proxy_label:
            text = f"[bold red]{escape(d.proxy_label)}[/bold red]\n{text}"
        console.print(Panel(text, border_style=TONES[head.tone], title="Result", title_align="left"))
        console.print(_comparison_table(rows, wide=console.width >= WIDE))
    else:
        if d.proxy_label:
            _plain(console, d.proxy_label)
        figures = f"{head.figure} ({head.interval})" if head.interval else head.figure
        _plain(console, f"Result: {head.sentence} {figures}".rstrip())
        for r in rows:
            named = zip(COLUMNS, row_cells(r), strict=True)
            _plain(console, "  " + ", ".join(f"{k} {v}" if k else v for k, v in named))
    w = d.winner
    if w is not None:
        _plain(console, f"Bits and ranks: {describe_allocation(d.header.units, d.bits(w), w.ranks)}")
    for line in page_lines(d):
        _plain(console, line)
    if files:
        _plain(console, f"Files in {folder}: " + ", ".join(files))
    _print_next(console, d, folder)


def _print_next(console: Console, d: ReportData, folder: Path) -> None:
    """What to do next, each with the line to type."""
    named = shlex.quote(printable(str(folder)))  # for people to copy into a shell
    quoted = {'"RUN"': json.dumps(printable(str(folder))), "RUN": named}  # in a line of Python, and of a shell
    steps = [(s.what, re.sub('"RUN"|RUN', lambda m: quoted[m[0]], s.code).splitlines()[-1]) for s in next_steps(d)]
    if d.end is None:
        steps.append(("Go on", f"the same command again, with out={named}"))
    if not console.is_terminal:
        for what, code in steps:
            _plain(console, f"Next: {what}: {code}")
    elif steps:
        console.print("[bold]Next[/bold]")
        for what, code in steps:
            console.print(f"  {what}:\n    [bold cyan]{escape(code)}[/bold cyan]", highlight=False, soft_wrap=True)


COLUMNS = ("", "allocation", "bits", "rank", "search loss", "test loss", "predicted", "measured", "fits")
AVERAGES = ("bits", "rank")
WIDE = 100
"""Columns of a terminal from which on the comparison has room for the averages."""


def row_cells(r: story.Row) -> tuple[str, ...]:
    """One row of the comparison as text, in the order of ``COLUMNS``."""
    return (r.role, r.name, f"{r.average_bits:.2f}", f"{r.average_rank:.2f}", number(r.search_loss),
            number(r.test_loss), DASH if r.predicted_bytes is None else size(r.predicted_bytes),
            DASH if r.measured_bytes is None else size(r.measured_bytes),
            DASH if r.fits is None else "yes" if r.fits else "no")


def _comparison_table(rows: Sequence[story.Row], *, wide: bool) -> Table:
    table = Table(title="Compared (loss in nats per token, lower is better)", title_justify="left",
                  box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    kept = [i for i, column in enumerate(COLUMNS) if wide or column not in AVERAGES]
    for i in kept:
        table.add_column(COLUMNS[i] if wide else COLUMNS[i].replace(" ", "\n"), justify="left" if i < 2 else "right",
                         no_wrap=True)
    for r in rows:
        cells = row_cells(r)
        table.add_row(*(escape(cells[i]) for i in kept), style="bold" if r is rows[0] else "")
    return table


def page_lines(d: ReportData) -> list[str]:
    """Average bits, gap closed and cost, one line each."""
    gap, bits = story.gap_closed(d), story.average_bits(d)
    averages = [] if bits is None else [f"Average bits: {bits}"]
    closed = [] if gap is None else [f"Gap from QLoRA to 16-bit LoRA closed: {gap}"]
    return [*averages, *closed, cost_line(d)]


def cost_line(d: ReportData) -> str:
    """Cost in training tokens and evaluations, wall time and the search's own overhead."""
    overhead = d.study.overhead_seconds
    share = 100 * overhead / d.wall_seconds if d.wall_seconds > 0 else 0.0
    return (f"Cost: {d.total_cost:,.0f} training tokens = {d.equivalents:.1f} high-fidelity evaluations in "
            f"{duration(d.wall_seconds)}; of these {duration(overhead)} ({share:.1f} %) for the search itself")


def print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    if not console.is_terminal:
        for row in (columns, *rows):
            console.file.write("\t".join(row) + "\n")  # the console would expand tabs
        return
    table = Table()
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _plain(console: Console, line: str) -> None:
    console.print(printable(line), markup=False, highlight=False, soft_wrap=not console.is_terminal)
