"""``python -m qra_bo.runs list|show|compare|prune``: looks after a folder of runs."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from qra_bo.report.data import load_run
from qra_bo.report.side_by_side import FOUND, SETTING, FoundRun, NamedRun, find_runs
from qra_bo.report.tables import print_line, print_result, print_side_by_side, print_table
from qra_bo.report.text import size
from qra_bo.study.journal import RunLock
from qra_bo.utils.errors import OutputError, UserError, from_system
from qra_bo.utils.files import check_run_folder
from qra_bo.utils.formatting import DASH
from qra_bo.utils.process import prepare
from qra_bo.utils.redact import printable

CHECKPOINTS = "checkpoints"
LISTED = ("model", "budget", "scope", "oracle", "search loss", "final loss", "versus best uniform")
"""Facts of a run that ``list`` prints."""


def list_runs(folder: Path, console: Console) -> None:
    """Print one line for every run: state, model, budget, loss, difference to the best uniform baseline."""
    runs = find_runs(folder)
    if not runs:
        print_line(console, f"no runs in {folder}")
        return
    readers = {title: read for title, read in (*SETTING, *FOUND) if title in LISTED}
    rows = []
    for run in runs:
        name = printable(str(run.folder.relative_to(folder)) if run.folder != folder else run.folder.name)
        rows.append((name, run.state, *(DASH if run.data is None else read(run.data) for read in readers.values())))
    print_table(console, ("run", "state", *readers), rows)
    for run in runs:
        if run.problem:
            print_line(console, f"{run.folder}: {run.problem}")


def show_run(folder: Path, console: Console) -> None:
    """Print the result of one run. Raises ``OutputError`` if ``folder`` is none, ``JournalError`` if its journal can't
    be read."""
    d = load_run(folder)
    if not d.ended:
        print_line(console, f"State: {FoundRun(folder, d).state} in the stage {d.stage}")
    shown = ("best.json", "report.html", "adapter", "quant_manifest.json")
    print_result(console, d, folder, [name for name in shown if (folder / name).exists()])


def compare_runs(folders: Sequence[Path], console: Console) -> None:
    """Print several runs side by side, with what keeps their losses from being compared. Raises ``OutputError`` if
    fewer than two are given, or one of them is none."""
    if len(folders) < 2:
        raise OutputError(f"compare needs at least two runs; got {len(folders)}: {', '.join(map(str, folders))}")
    print_side_by_side([NamedRun(str(f), load_run(f)) for f in folders], console)


def prune_runs(folder: Path, console: Console, *, unfinished: bool, yes: bool) -> None:
    """Remove checkpoints of finished runs, and with ``unfinished`` whole runs that ended early.

    Active and unreadable runs are left alone. Without ``yes`` nothing is removed. Raises ``OutputError`` if a run holds
    links, or is in use.
    """
    doomed = []
    for run in find_runs(folder):
        if run.stopped and unfinished:
            doomed.append((run, run.folder))
        elif run.finished and (run.folder / CHECKPOINTS).is_dir():
            doomed.append((run, run.folder / CHECKPOINTS))
    total = sum(p.stat().st_size for _, path in doomed for p in path.rglob("*") if p.is_file())
    for run, path in doomed:
        if yes:
            check_run_folder(run.folder)
            with RunLock(run.folder):
                shutil.rmtree(path)
        print_line(console, f"{'removed' if yes else 'would remove'} {path}")
    note = "" if yes or not doomed else "; nothing was removed: add --yes to do it"
    print_line(console, f"{len(doomed)} folders, {size(total)}{note}")


def build_parser() -> argparse.ArgumentParser:
    """The command line; every command stores its function as ``run``, which takes the arguments and a console."""
    parser = argparse.ArgumentParser(prog="python -m qra_bo.runs", description="Look after a folder of runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|show|compare|prune")
    listing = commands.add_parser("list", help="one line for every run below FOLDER")
    listing.set_defaults(run=lambda a, console: list_runs(a.folder, console))
    show = commands.add_parser("show", help="the result of one run")
    show.add_argument("folder", type=Path)
    show.set_defaults(run=lambda a, console: show_run(a.folder, console))
    compare = commands.add_parser("compare", help="several runs side by side")
    compare.add_argument("folders", type=Path, nargs="+", metavar="folder")
    compare.set_defaults(run=lambda a, console: compare_runs(a.folders, console))
    prune = commands.add_parser("prune", help="remove checkpoints of finished runs (says what, removes with --yes)")
    prune.add_argument("--unfinished", action="store_true", help="also remove whole runs that ended early")
    prune.add_argument("--yes", action="store_true", help="really remove")
    prune.set_defaults(run=lambda a, console: prune_runs(a.folder, console, unfinished=a.unfinished, yes=a.yes))
    for command in (listing, prune):
        command.add_argument("folder", type=Path, nargs="?", default=Path("outputs"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one message on stderr where the input can't work."""
    args = build_parser().parse_args(arguments)
    try:
        args.run(args, Console())
    except (UserError, OSError) as error:
        known = error if isinstance(error, UserError) else from_system(error)
        if known is None:
            raise
        print(printable(str(known)), file=sys.stderr)
        return known.exit_status
    return 0


if __name__ == "__main__":
    prepare()
    sys.exit(main())
