"""``task=report``: write the report of a run again from its journal, finished or not; several runs on one page."""

from pathlib import Path

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.report.data import load_run
from qra_bo.report.html import write_page, write_report
from qra_bo.report.side_by_side import FoundRun, find_runs
from qra_bo.report.tables import print_line, print_result, print_runs
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.utils.errors import JournalError


def show_runs(folder: Path) -> list[FoundRun]:
    """Print one line for every run in folders below, and write the page that opens their reports; nothing where none
    can be read. Returns those that can. Raises ``OutputError`` if the page can't be written."""
    runs = [run for run in find_runs(folder) if run.folder != folder] if folder.is_dir() else []
    readable = [run for run in runs if run.data is not None]
    if readable:
        console = Console()
        print_runs(runs, console)
        write_page(folder / "report.html", readable)
        print_line(console, f"Page of all runs: {folder / 'report.html'}")
    return readable


def run(config: RunConfig) -> int:
    """Report on the run in ``out``, or on all runs in folders below it; returns 0.

    Raises:
        OutputError: If the folder holds no run.
        JournalError: If no journal can be read.
    """
    folder = Path(str(config.out))
    readable = [] if (folder / JOURNAL_NAME).exists() else show_runs(folder)
    for run in readable:
        write_report(run.folder)
    if not readable:
        if folder.is_dir() and any(run.folder != folder for run in find_runs(folder)):
            raise JournalError(f"no journal below {folder} can be read; nothing was written there")
        write_report(folder)
        print_result(Console(), load_run(folder), folder, ["report.html", "report.json", "plots/"])
    return 0
