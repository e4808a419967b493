"""``task=report``: write a run's report again from its journal, also while the run goes on."""

from pathlib import Path

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.report.tables import print_result
from qra_bo.report.write import load_run, write_report


def run(config: RunConfig) -> int:
    """Report on the run in ``out``; returns 0.

    Raises:
        OutputError: If the folder holds no run.
        JournalError: If its journal can't be read.
    """
    folder = Path(str(config.out))
    files = write_report(folder)
    print_result(Console(), load_run(folder), [str(path) for path in files])
    return 0
