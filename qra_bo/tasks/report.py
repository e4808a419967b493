"""``task=report``: write the report of a run again from its journal, finished or not; several runs on one page."""

from pathlib import Path

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.report.data import load_run
from qra_bo.report.html import write_page, write_report
from qra_bo.report.side_by_side import SWEPT, NamedRun, find_runs
from qra_bo.report.tables import print_line, print_result, print_side_by_side, print_table
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.utils.errors import JournalError
from qra_bo.utils.redact import printable


def show_sweep(folder: Path) -> None:
    """Print one line for every run in folders below, and write the page that opens their reports; nothing where there
    are none. Raises ``OutputError`` if the page can't be written."""
    named = [NamedRun(run.folder.relative_to(folder).as_posix(), run.data) for run in find_runs(folder)
             if run.data is not None and run.folder != folder] if folder.is_dir() else []
    if named:
        console = Console()
        print_table(console, ("run", *(title for title, _ in SWEPT)),
                    [(printable(run.name), *(read(run.data) for _, read in SWEPT)) for run in named])
        write_page(folder / "report.html", named)
        print_line(console, f"Page of all runs: {folder / 'report.html'}")


def run(config: RunConfig) -> int:
    """Report on the run in ``out``, or on all runs in folders below it; returns 0.

    Raises:
        OutputError: If the folder holds no run.
        JournalError: If no journal can be read.
    """
    folder, console = Path(str(config.out)), Console()
    inside = [] if (folder / JOURNAL_NAME).exists() or not folder.is_dir() else find_runs(folder)
    if not inside:
        write_report(folder)
        print_result(console, load_run(folder), folder, ["report.html", "report.json", "plots/"])
        return 0
    named = []
    for run in inside:
        if run.data is None:
            print_line(console, f"{run.folder} is left out: {run.problem}")
        else:
            write_report(run.folder)
            named.append(NamedRun(run.folder.relative_to(folder).as_posix(), run.data))
    if not named:
        raise JournalError(f"no journal below {folder} can be read; nothing was written there")
    print_side_by_side(named, console)
    write_page(folder / "report.html", named)
    print_line(console, f"Files: {folder / 'report.html'} and a report.html in the folder of every run")
    return 0
