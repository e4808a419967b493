"""Lines of a journal to events and back, and the state of the run that they tell."""

import functools
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qra_bo.execution.base import ProfileResult
from qra_bo.study import events as ev
from qra_bo.study.header import Effort, Header
from qra_bo.study.journal import JOURNAL_NAME, read_journal
from qra_bo.study.state import Study
from qra_bo.utils.errors import JournalError, ProfileError, SpaceError
from qra_bo.utils.fields import refusals

OwnCodec = ev.Provenance | ev.FinishedTrial | ProfileResult
Record = (Header | Effort | ev.Stage | ev.Warned | ev.Calibration | ev.Untuned | ev.Objective | ev.Prediction
          | ev.Stopped | ev.SurrogateCheck | ev.Choice | ev.Confirmation | ev.Measured | ev.Final | ev.End | OwnCodec)
KINDS: dict[str, type[Any]] = {
    "header": Header, "extension": Effort, "provenance": ev.Provenance, "stage": ev.Stage, "warning": ev.Warned,
    "profile": ProfileResult, "trial": ev.FinishedTrial, "calibration": ev.Calibration, "untuned": ev.Untuned,
    "objective": ev.Objective, "prediction": ev.Prediction, "stopped": ev.Stopped, "surrogate_check": ev.SurrogateCheck,
    "choice": ev.Choice, "confirmation": ev.Confirmation, "measured": ev.Measured, "final": ev.Final, "end": ev.End}
"""Names of the kinds in the journal; ``Study`` has the last record of each under its name."""
NAMES: dict[type[Any], str] = {record: name for name, record in KINDS.items()}
MOST_SHOWN = 200
"""Characters of a malformed value that a message shows."""
_adapter: Any = functools.cache(TypeAdapter)


def encode(record: Record) -> dict[str, Any]:
    """Return the fields of a record's line as JSON values."""
    fields = record.to_json() if isinstance(record, OwnCodec) else \
        _adapter(type(record)).dump_python(record, mode="json")
    return {k: v for k, v in fields.items() if k != "event"}


def as_line(event: ev.Event) -> dict[str, Any]:
    """Return an event as a mapping for programs outside the project: its fields with ``event`` and ``time``."""
    return {"event": event.kind, "time": event.time.isoformat(), **encode(event.record)}


def decode(line: Mapping[str, Any]) -> ev.Event:
    """Return the event of a journal's line. Raises ``JournalError`` if it is of no known kind, or malformed."""
    name = line.get("event")
    try:
        kind = KINDS[str(name)]
        record = kind.from_json(line) if issubclass(kind, OwnCodec) else _adapter(kind).validate_python(dict(line))
        return ev.Event(str(name), record, datetime.fromisoformat(line["time"]))
    except ValidationError as error:
        why = refusals(error)[0]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, SpaceError, ProfileError) as error:
        why = repr(error)
    raise JournalError(f"the {str(name)[:MOST_SHOWN]} event in the journal is malformed: {why[:MOST_SHOWN]}; it was "
                       "not written by this program")


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
