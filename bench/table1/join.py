"""Results of another folder of the same table: the work of a table may be split over machines."""

from pathlib import Path

from bench.store import Store
from bench.table1.config import NAME
from bench.table1.session import Session
from qra_bo.trials import TrialState
from qra_bo.utils.errors import JournalError
from qra_bo.utils.files import check_run_folder


def join(session: Session, folder: Path) -> int:
    """Take over the results of ``folder`` that the table lacks, and return their number; its own results stay.

    ``folder`` is only read, and another process may work on it at the same time. Searches that have not ended are not
    taken over. Limits, methods and numbers of seeds may differ.

    Raises:
        JournalError: If it is of another configuration, or its results would not compare.
        OutputError: If it holds links, or the table can't be written.
    """
    path = folder / NAME
    check_run_folder(folder)
    events = Store(path).events
    if not events:
        raise JournalError(f"table1.join: {path} is empty: there is nothing to take over")
    session.results.check_header(path, events[0])
    return sum(session.results.take_over(folder, event) for event in events[1:]
               if event.get("state") != TrialState.FAILED.value)
