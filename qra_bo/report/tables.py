"""Terminal text of the data before a run, of a result, and of tables. Plain lines where there is no terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qra_bo.finetune.data.records import DataSplits
from qra_bo.report import story
from qra_bo.report.data import ReportData
from qra_bo.report.next_steps import next_steps
from qra_bo.report.side_by_side import COLUMNS, FoundRun, caveats
from qra_bo.study.card import FAIL, PASS, UNKNOWN, WARN, Card
from qra_bo.study.gain import told_gain
from qra_bo.study.results import checks
from qra_bo.utils.redact import printable

TONES = {"better": "green", "equal": "yellow", "open": "cyan", "worse": "red"}
STATUS_STYLE = {PASS: "green", WARN: "yellow", FAIL: "bold red", UNKNOWN: "dim"}
AVERAGES = ("bits", "rank")
"""Columns of the comparison that a narrow terminal leaves out."""
WIDE = 100
"""Least width of a terminal that shows the averages."""
SHOWN = 400
"""Characters of one part of the example; the middle of a longer one is left out."""
BEGIN, END = "[[", "]]"
"""Marks of trained parts where there is no colour."""


def print_result(console: Console, d: ReportData, folder: Path, files: Sequence[str] = ()) -> None:
    """Print what training gained, answer, comparison, a text before and after, bits and ranks by unit, cost, health
    cards, warnings, ``files`` of the folder and next steps."""
    head, rows, own = story.answer(d), story.comparison(d), told_gain(d.study)
    if console.is_terminal:
        text = f"{escape(head.sentence)}\n[bold]{head.figure}[/bold]  {head.interval}".rstrip()
        text = f"[bold]{own}[/bold]\n{text}" if own else text
        if d.proxy_label:
            text = f"[bold red]{escape(d.proxy_label)}[/bold red]\n{text}"
        console.print(Panel(text, border_style=TONES[head.tone], title="Result", title_align="left"))
        wide = console.width >= WIDE
        kept = [i for i, column in enumerate(story.COLUMNS) if wide or column not in AVERAGES]
        names = [story.COLUMNS[i] if wide else story.COLUMNS[i].replace(" ", "\n") for i in kept]
        console.print(_table(f"Compared ({d.loss_text}; test loss: {story.tested(d)})", names,
                             [[r.cells[i] for i in kept] for r in rows], bold=rows[0].role if rows else "", left=2))
    else:
        if d.proxy_label:
            print_line(console, d.proxy_label)
        if own:
            print_line(console, own)
        figures = f"{head.figure} ({head.interval})" if head.interval else head.figure
        print_line(console, f"Result: {head.sentence} {figures}".rstrip())
        print_line(console, f"Compared ({d.loss_text}; test loss: {story.tested(d)}):")
        for r in rows:
            named = zip(story.COLUMNS, r.cells, strict=True)
            print_line(console, "  " + ", ".join(f"{k} {v}" if k else v for k, v in named))
    for what, said in story.sample(d):
        print_line(console, f"{what}: {' '.join(said.split()) or '(nothing)'}")
    if d.winner is not None:
        print_line(console, f"Bits and ranks: {story.allocation_line(d)}")
    for line in story.lines(d):
        print_line(console, line)
    if d.ended:
        print_health(console, [card for card in checks(d.study) if card.action or card.status != UNKNOWN])
    for warning in d.warnings:  # lines that a damaged journal lacks change the numbers above
        print_line(console, f"Warning: {warning}")
    if files:
        print_line(console, f"Files in {folder}: " + ", ".join(files))
    for what, code in next_steps(d, str(folder)):
        code = "; ".join(code.splitlines())
        if console.is_terminal:
            console.print(f"Next: {what}:\n    [bold cyan]{escape(code)}[/bold cyan]", highlight=False, soft_wrap=True)
        else:
            print_line(console, f"Next: {what}: {code}")


def print_health(console: Console, cards: Sequence[Card]) -> None:
    """Print every card: its status, the question, the finding and what to do."""
    if not console.is_terminal:
        for c in cards:
            print_line(console, f"Check: {c.question} {c.status}. {c.finding} {c.action}".rstrip())
        return
    table = Table.grid(padding=(0, 2))
    for c in cards:
        table.add_row(f"[{STATUS_STYLE[c.status]}]{c.status}[/]",
                      f"[bold]{c.question}[/bold] {escape(c.finding)} [bold]{escape(c.action)}[/bold]".rstrip())
    console.print(table)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], bold: str, left: int = 1) -> Table:
    """A table whose row named ``bold`` is bold; all but the first ``left`` columns are aligned to the right."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=i > 0)
    for row in rows:
        table.add_row(*map(escape, row), style="bold" if row[0] == bold else "")
    return table


def print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal, tab-separated lines elsewhere."""
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


def print_runs(runs: Sequence[FoundRun], console: Console) -> None:
    """Print a line for every run, then the reasons of those that can't be read, and the caveats."""
    print_table(console, COLUMNS, [run.cells for run in runs])
    for line in (*(f"{run.folder}: {run.problem}" for run in runs if run.problem), *caveats(runs)):
        print_line(console, line)


def print_line(console: Console, line: str) -> None:
    """Print text as it is, without control characters; only a terminal wraps it."""
    console.print(printable(line), markup=False, highlight=False, soft_wrap=not console.is_terminal)


def print_data(console: Console, data: DataSplits) -> None:
    """Print the sizes of the training split and an example; trained parts are green, or without a terminal marked."""
    facts, train = data.train.facts, data.train
    tokens = train.input_ids.size
    print_line(console, f"Data: {data.source}: {facts.records:,} training records in {len(train):,} sequences of "
                        f"{train.input_ids.shape[1]:,} tokens; {1 - facts.used_tokens / tokens:.1%} of the tokens are "
                        f"padding, and a loss is taken on {train.n_targets / tokens:.1%}")
    print_line(console, f"  {facts.told_cut(train.input_ids.shape[1]) or 'no record is cut'}")
    for reason, n in data.left_out.items():
        print_line(console, f"  left out, because {reason}: {n:,}")
    if data.repeated:
        print_line(console, f"  left out as repeats of an earlier record: {data.repeated:,}")
    if data.render == "chat":
        print_line(console, "  instructions are rendered by the model's chat template; data.render=plain: as text")
    if not data.example:
        return
    colour = console.is_terminal
    print_line(console, "  an example, as the model sees it; the loss is taken on the "
                        f"{'green' if colour else f'{BEGIN}marked{END}'} text:")
    text = Text()
    for part, trained in data.example:
        shown = printable(part if len(part) <= SHOWN else f"{part[:SHOWN // 2]} ... {part[-SHOWN // 2:]}")
        if trained:
            text.append(shown if colour else f"{BEGIN}{shown}{END}", style="bold green")
        else:
            text.append(shown)
    console.print(text, soft_wrap=not colour)
