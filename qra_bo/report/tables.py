"""Terminal text of the data before a run, of a result, and of tables. Plain lines where there is no terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path

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
from qra_bo.study.gain import told_gain
from qra_bo.study.health import FAIL, PASS, UNKNOWN, WARN
from qra_bo.study.results import checks
from qra_bo.utils.process import tolerant
from qra_bo.utils.redact import printable

TONES = {"better": "green", "equal": "yellow", "open": "cyan", "worse": "red"}
STYLES = {PASS: "green", WARN: "yellow", FAIL: "bold red", UNKNOWN: "dim"}
WIDE = 100
"""Least width of a terminal that shows the comparison as a table."""
SHOWN = 400
"""Characters of one part of the example; the middle of a longer one is left out."""
BEGIN, END = "[[", "]]"
"""Marks of trained parts."""


def print_result(console: Console, d: ReportData, folder: Path, files: Sequence[str] = ()) -> None:
    """Print what training gained, answer, comparison, a text before and after, bits and ranks by unit, cost, health
    cards, warnings, ``files`` of the folder and next steps."""
    head, rows = story.answer(d), story.comparison(d)
    figures = f"{head.figure} ({head.interval})" if head.interval else head.figure
    parts = (d.proxy_label, told_gain(d.study), f"Result: {head.sentence} {figures}".rstrip())
    answer = Text(printable("\n".join(filter(None, parts))))
    console.print(Panel(answer, border_style=TONES[head.tone]) if console.is_terminal else answer,
                  soft_wrap=not console.is_terminal)
    print_line(console, f"Compared ({d.loss_text}; test loss: {story.tested(d)}):")
    if console.is_terminal and console.width >= WIDE:
        print_table(console, story.COLUMNS, [r.cells for r in rows])
    else:
        for r in rows:
            named = zip(story.COLUMNS, r.cells, strict=True)
            print_line(console, "  " + ", ".join(f"{k} {v}" if k else v for k, v in named))
    for what, said in story.sample(d):
        print_line(console, f"{what}: {' '.join(said.split()) or '(nothing)'}")
    if d.winner is not None:
        print_line(console, f"Bits and ranks: {story.allocation_line(d)}")
    for line in story.lines(d):
        print_line(console, line)
    for c in checks(d.study) if d.ended else ():
        if c.action or c.status != UNKNOWN:
            print_line(console, f"Check: {c.question} {c.status}. {c.finding} {c.action}".rstrip(), STYLES[c.status])
    for warning in d.warnings:  # lines that a damaged journal lacks change the numbers above
        print_line(console, f"Warning: {warning}")
    if files:
        print_line(console, f"Files in {folder}: " + ", ".join(files))
    for what, code in next_steps(d, str(folder)):
        console.print(Text(f"Next: {what}: ").append("; ".join(code.splitlines()), "bold cyan"), soft_wrap=True)


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


def progress_console(plain: bool) -> Console:
    """Return a console on stderr, so that stdout stays for results; with ``plain`` it is never taken for a terminal."""
    return Console(file=tolerant(sys.stderr), force_terminal=False if plain else None)


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print text as it is, without control characters; only a terminal wraps it and has its style."""
    console.print(Text(printable(line), style), soft_wrap=not console.is_terminal)


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
    if data.render == "chat":
        print_line(console, "  instructions are rendered by the model's chat template; data.render=plain: as text")
    if not data.example:
        return
    print_line(console, f"  an example, as the model sees it; the loss is taken on the {BEGIN}marked{END} text:")
    text = Text()
    for part, trained in data.example:
        shown = printable(part if len(part) <= SHOWN else f"{part[:SHOWN // 2]} ... {part[-SHOWN // 2:]}")
        text.append(f"{BEGIN}{shown}{END}" if trained else shown, "bold green" if trained else "")
    console.print(text, soft_wrap=not console.is_terminal)
