"""Results of another folder of the same table: the work of a table may be split over machines."""

import os
from pathlib import Path

from bench.table1.config import NAME
from bench.table1.search import FOLDER
from bench.table1.session import Session
from qra_bo.study.journal import JOURNAL_NAME, RESERVED, read_journal
from qra_bo.trials import TrialState
from qra_bo.utils.errors import JournalError
from qra_bo.utils.files import check_plain, check_run_folder, writing


def join(session: Session, folder: Path) -> int:
    """Take over the results of ``folder`` that the table lacks; its own results stay.

    ``folder`` is only read, and another process may work on it at the same time.

    Args:
        session: Of the table.
        folder: Of the same table begun elsewhere; limits, methods and numbers of seeds may differ.

    Returns:
        The number of results taken over.

    Raises:
        JournalError: If it is of another configuration, or its results would not compare.
        OutputError: If it holds links, or the table can't be written.
    """
    path = folder / NAME
    check_run_folder(folder)
    events = read_journal(path).events
    if not events:
        raise JournalError(f"table1.join: {path} is empty: there is nothing to take over")
    session.results.check_header(path, events[0])
    taken = 0
    for event in events[1:]:
        fields = {k: v for k, v in event.items() if k not in RESERVED}
        if event["event"] == "provenance":
            session.results.join_provenance(folder, fields)
        elif event["event"] != "warning" and event.get("state") != TrialState.FAILED.value:
            taken += session.results.take_over(str(event["event"]), fields)
    for journal in sorted(folder.glob(f"{FOLDER}/*/{JOURNAL_NAME}")):
        taken += _copy_search(journal, session.folder / FOLDER / journal.parent.name)
    return taken


def _copy_search(journal: Path, into: Path) -> bool:
    """Copy the journal of a search that is not begun here; its other files follow from it."""
    target = into / JOURNAL_NAME
    if target.exists():
        return False
    check_plain(journal)
    with writing(into, "run the same command again"):
        into.mkdir(parents=True, exist_ok=True)
        part = into / f"{JOURNAL_NAME}.part"
        part.write_bytes(journal.read_bytes()[:read_journal(journal).good_bytes])
        os.replace(part, target)
    return True
