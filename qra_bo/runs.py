"""``python -m qra_bo.runs list|show|compare|prune|mirror``: looks after a folder of runs."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from qra_bo.report.data import ReportData
from qra_bo.report.mirror import SQLITE, mirror_run, storage_url
from qra_bo.report.side_by_side import NamedRun, caveats, facts, search_loss, versus
from qra_bo.report.tables import print_result, print_table
from qra_bo.report.text import DASH, number, size
from qra_bo.report.write import load_run, write_page
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.study.lock import RunLock, is_locked
from qra_bo.utils.errors import JournalError, OutputError, UserError
from qra_bo.utils.files import check_run_folder
from qra_bo.utils.redact import printable, redact

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder: its report data, or why its journal can't be read."""

    folder: Path
    data: ReportData | None
    problem: str = ""

    @property
    def state(self) -> str:
        """``done`` and the like from the journal; else ``active``, ``unfinished`` or ``unreadable``."""
        if self.data is None:
            return "unreadable"
        if self.data.end is not None:
            return self.data.state
        return "active" if is_locked(self.folder) else "unfinished"


def find_runs(folder: Path) -> list[Run]:
    """Runs in ``folder``, itself included, at any depth, in order of their paths.

    Raises:
        OutputError: If ``folder`` is no directory.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder} is not a folder; give the folder that holds your runs, e.g. outputs")
    runs = []
    for journal in sorted(folder.rglob(JOURNAL_NAME)):
        try:
            runs.append(Run(journal.parent, load_run(journal.parent)))
        except (JournalError, OutputError) as error:
            runs.append(Run(journal.parent, None, str(error)))
    return runs


def list_runs(folder: Path, console: Console) -> None:
    """One line for every run: state, model, budget, loss, difference to the best uniform choice."""
    runs = find_runs(folder)
    if not runs:
        console.print(f"no runs in {folder}", markup=False, highlight=False)
        return
    print_table(console, ("run", "state", "model", "budget", "oracle", "loss", "versus best uniform", "evaluations"),
           [_line(folder, run) for run in runs])
    for run in runs:
        if run.problem:
            console.print(printable(f"{run.folder}: {run.problem}"), markup=False, highlight=False, soft_wrap=True)


def _line(folder: Path, run: Run) -> tuple[str, ...]:
    name = printable(str(run.folder.relative_to(folder)) if run.folder != folder else run.folder.name)
    d = run.data
    if d is None:
        return (name, run.state, *(DASH,) * 6)
    return (name, run.state, d.header.model, f"{size(d.header.budget_bytes)} {d.header.scope}", d.header.oracle,
            number(search_loss(d)), versus(d), str(len(d.trials)))


def compare_runs(folders: Sequence[Path], console: Console, page: Path | None = None) -> None:
    """Several runs side by side, and as a ``page`` of HTML; says where they differ in what makes losses comparable.

    Raises:
        OutputError: If fewer than two runs are given, one of them is no run, or the page can't be written.
    """
    if len(folders) < 2:
        raise OutputError(f"compare needs at least two runs; got {len(folders)}: {', '.join(map(str, folders))}")
    runs = [NamedRun(str(f), load_run(f)) for f in folders]
    print_side_by_side(runs, console)
    if page is not None:
        write_page(page, [replace(run, link=own_report(f, page.parent)) for f, run in zip(folders, runs, strict=True)])
        console.print(f"Files: {page}", markup=False, highlight=False, soft_wrap=True)


def print_side_by_side(runs: Sequence[NamedRun], console: Console) -> None:
    """A column for every run, and what keeps their losses from being compared."""
    print_table(console, ("", *(printable(run.name) for run in runs)), facts(runs))
    for line in caveats(runs):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def own_report(folder: Path, start: Path) -> str | None:
    """The run's own report as a link from a page in ``start``, or ``None`` if it has none."""
    report = folder / "report.html"
    return quote(Path(os.path.relpath(report, start)).as_posix()) if report.is_file() else None


def prune_runs(folder: Path, console: Console, *, unfinished: bool, yes: bool) -> list[Path]:
    """Remove checkpoints of finished runs, and with ``unfinished`` whole runs that ended early.

    Runs that may still be going on and unreadable ones are left alone. Without ``yes`` nothing is removed.

    Returns:
        The paths that were removed, or would be.
    """
    doomed = []
    for run in find_runs(folder):
        if run.state == "unfinished" and unfinished:
            doomed.append(run.folder)
        elif run.state not in ("active", "unreadable", "unfinished") and (run.folder / CHECKPOINTS).is_dir():
            doomed.append(run.folder / CHECKPOINTS)
    total = sum(p.stat().st_size for path in doomed for p in path.rglob("*") if p.is_file())
    for path in doomed:
        if yes:
            check_run_folder(path.parent if path.name == CHECKPOINTS else path)
            with RunLock(path if path.name != CHECKPOINTS else path.parent):
                shutil.rmtree(path)
        console.print(printable(f"{'removed' if yes else 'would remove'} {path}"), markup=False, highlight=False,
                      soft_wrap=True)
    note = "" if yes or not doomed else "; nothing was removed: add --yes to do it"
    console.print(f"{len(doomed)} folders, {size(total)}{note}", markup=False, highlight=False)
    return doomed


def mirror_runs(folder: Path, console: Console, storage: str) -> None:
    """Copy every readable run below ``folder`` into an Optuna storage (see ``qra_bo.report.mirror``).

    Raises:
        OutputError: If the storage can't be used.
        MissingExtraError: If Optuna is not installed.
    """
    for run in find_runs(folder):
        if run.data is None:
            continue
        url = storage_url(storage, run.folder)
        try:
            copied = mirror_run(run.folder, url)
        except UserError:
            raise
        except Exception as error:  # a database may raise anything
            reason = redact(str(error)).split("\n")[0]
            raise OutputError(f"the storage {redact(url)} can't take the run {run.folder} ({type(error).__name__}: "
                              f"{reason}); give another with --storage, or mend it") from error
        console.print(f"{run.folder}: {copied} evaluations in {redact(url)}", markup=False, highlight=False,
                      soft_wrap=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qra_bo.runs", description="Look after a folder of runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|show|compare|prune|mirror")
    listing = commands.add_parser("list", help="one line for every run below FOLDER")
    listing.add_argument("folder", type=Path, nargs="?", default=Path("outputs"))
    show = commands.add_parser("show", help="the result of one run")
    show.add_argument("folder", type=Path)
    show.add_argument("--json", action="store_true", help="the data of report.json on stdout")
    compare = commands.add_parser("compare", help="several runs side by side")
    compare.add_argument("folders", type=Path, nargs="+", metavar="folder")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write them as one page too")
    prune = commands.add_parser("prune", help="remove checkpoints of finished runs (says what, removes with --yes)")
    prune.add_argument("folder", type=Path, nargs="?", default=Path("outputs"))
    prune.add_argument("--unfinished", action="store_true", help="also remove whole runs that ended early")
    prune.add_argument("--yes", action="store_true", help="really remove")
    mirror = commands.add_parser("mirror", help="copy runs into an Optuna storage, for optuna-dashboard")
    mirror.add_argument("folder", type=Path, nargs="?", default=Path("outputs"))
    mirror.add_argument("--storage", default=SQLITE, help="sqlite (a file beside the runs) or a URL")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one message on stderr where the input can't work."""
    args = build_parser().parse_args(arguments)
    console = Console()
    try:
        if args.command == "list":
            list_runs(args.folder, console)
        elif args.command == "show":
            _show(args.folder, console, as_json=args.json)
        elif args.command == "compare":
            compare_runs(args.folders, console, args.html)
        elif args.command == "mirror":
            mirror_runs(args.folder, console, args.storage)
        else:
            prune_runs(args.folder, console, unfinished=args.unfinished, yes=args.yes)
    except UserError as error:
        print(printable(str(error)), file=sys.stderr)
        return error.exit_status
    return 0


def _show(folder: Path, console: Console, *, as_json: bool) -> None:
    d = load_run(folder)
    if as_json:
        from qra_bo.report.html import report_json  # imports matplotlib, which takes a second

        print(json.dumps(report_json(d), indent=1, sort_keys=True))
        return
    shown = ("best.json", "report.html", "adapter", "quant_manifest.json")
    print_result(console, d, folder, [name for name in shown if (folder / name).exists()])


if __name__ == "__main__":
    sys.exit(main())
