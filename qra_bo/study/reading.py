"""The state of a run from its journal."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qra_bo.study.journal import JOURNAL_NAME, read_journal
from qra_bo.study.lines import decode
from qra_bo.study.state import Study


def study_of(lines: Iterable[Mapping[str, Any]]) -> Study:
    """Return the run of a journal's lines in their order, of which the first is the header. Raises ``JournalError`` if
    one is malformed."""
    study = Study()
    for line in lines:
        study.add(decode(line))
    return study


def begun_study(folder: Path) -> Study | None:
    """Return the run in ``folder``, or ``None`` where none has begun: where its first line could not be written, an
    empty journal is left. Raises ``JournalError`` if a journal can't be read."""
    path = folder / JOURNAL_NAME
    lines = read_journal(path).events if path.exists() else ()
    return study_of(lines) if lines else None
