"""Writes a run's report files from its journal."""

import json
from collections.abc import Sequence
from pathlib import Path

from qra_bo.report.data import ReportData, parse_events
from qra_bo.report.html import render_html, render_runs, report_json
from qra_bo.report.plots import write_plots
from qra_bo.report.side_by_side import NamedRun
from qra_bo.study.journal import JOURNAL_NAME, read_journal
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import check_run_folder, replace_text, writing


def load_run(folder: Path) -> ReportData:
    """Read the journal of a run's folder.

    Raises:
        OutputError: If the folder holds no journal.
        JournalError: If the journal can't be read.
    """
    path = folder / JOURNAL_NAME
    if not path.is_file():
        raise OutputError(f"{folder} is no run's folder: it holds no {JOURNAL_NAME}; give the out= folder of a run")
    content = read_journal(path)
    return parse_events(content.events, content.warnings)


def write_report(folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.json`` and ``plots/*.png`` beside the journal in ``folder``; returns the paths.

    Works on a run that is still going on, too: files are replaced whole.

    Raises:
        OutputError: If the folder holds no journal, holds links, or can't be written.
        JournalError: If the journal can't be read.
    """
    check_run_folder(folder)
    d = load_run(folder)
    page, data = folder / "report.html", folder / "report.json"
    with writing(folder, f"write the report again: task=report out={folder}"):
        replace_text(page, render_html(d))
        replace_text(data, json.dumps(report_json(d), indent=1, sort_keys=True) + "\n")
        return [page, data, *write_plots(d, folder / "plots")]


def write_page(page: Path, runs: Sequence[NamedRun]) -> None:
    """Write several runs side by side as one file.

    Raises:
        OutputError: If it can't be written.
    """
    with writing(page, "write it again"):
        replace_text(page, render_runs(runs))
