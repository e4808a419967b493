"""``task=report``: write the report of a run again from its journal, finished or not; several runs on one page."""

from pathlib import Path

from rich.console import Console

from qra_bo.config.schema import RunConfig
from qra_bo.report.side_by_side import NamedRun
from qra_bo.report.tables import print_result
from qra_bo.report.write import load_run, write_page, write_report
from qra_bo.runs import find_runs, own_report, print_side_by_side
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.utils.errors import JournalError


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
    for run in inside:
        if run.data is None:
            console.print(f"{run.folder} is left out: {run.problem}", markup=False, highlight=False, soft_wrap=True)
        else:
            write_report(run.folder)
    named = [NamedRun(str(run.folder.relative_to(folder)), run.data, own_report(run.folder, folder))
             for run in inside if run.data is not None]
    if not named:
        raise JournalError(f"no journal below {folder} can be read; nothing was written there")
    print_side_by_side(named, console)
    write_page(folder / "report.html", named)
    console.print(f"Files: {folder / 'report.html'} and a report.html in the folder of every run", markup=False,
                  highlight=False, soft_wrap=True)
    return 0
