"""The store of all benchmarks that train: an append-only JSONL file, each result in it once, synced at once."""

import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.report import machine
from qra_bo.study.provenance import collect
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import JournalError
from qra_bo.utils.files import writing

Event = Mapping[str, Any]


def now() -> str:
    """Return the local time, to seconds."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def append_line(path: Path, line: str) -> None:
    """Append a line and wait until the disk has it; what a killed writer left of its last line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end and not _ends_a_line(file, end):
            end -= 1
        file.truncate(end)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_a_line(file: Any, end: int) -> bool:
    file.seek(end - 1)
    return bool(file.read(1) == b"\n")


def read_lines(path: Path) -> list[str]:
    """Return the complete lines of a file; none where there is no such file."""
    content = path.read_bytes() if path.exists() else b""
    return content[:content.rfind(b"\n") + 1].decode().splitlines()


class Store:
    """Events by kind and key. The last event of a name counts; one whose ``state`` is failed counts as missing, since
    it was lost with its worker.

    Args:
        path: The file; it is made with the first event. Other processes may append to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        self._events: list[Event] = []
        self._named: dict[tuple[str, str], Event] = {}

    @property
    def events(self) -> list[Event]:
        """All events, in order; raises ``JournalError`` if a line is damaged."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._size:
            self._size = size
            self._events = [self._event(number, line) for number, line in enumerate(read_lines(self.path), start=1)]
            self._named = {(e["event"], e.get("key", "")): e for e in self._events
                           if e.get("state") != TrialState.FAILED.value}
        return self._events

    def _event(self, number: int, line: str) -> Event:
        try:
            return dict(json.loads(line))
        except ValueError as error:
            raise JournalError(f"line {number} of {self.path} is damaged ({error}); remove it, and what it held is "
                               "made again") from error

    def find(self, kind: str, key: str) -> Event | None:
        """Return the event of a kind under a key, or ``None``."""
        assert self.events is not None  # read what is new
        return self._named.get((kind, key))

    def append(self, kind: str, key: str, fields: Mapping[str, Any]) -> Event:
        """Write an event of JSON values, and return it; raises ``OutputError`` if it can't be written."""
        event = {"event": kind, "time": now(), "key": key, **fields}
        with writing(self.path, "run the same command again"):
            append_line(self.path, json.dumps(event, allow_nan=False))
        return event

    def once(self, kind: str, key: str, make: Callable[[], Mapping[str, Any]]) -> Event:
        """Return the event of a kind under a key; where there is none, ``make`` computes its fields."""
        found = self.find(kind, key)
        return self.append(kind, key, make()) if found is None else found


class TrialStore(Store):
    """Finished trials, one for each setting (e.g. a text) and spec, with the sessions that made them."""

    _session = ""

    def begin(self, setting: str, described: Mapping[str, Any]) -> None:
        """Write the machine, commit and packages of the trials that follow; ``described``: by the oracle."""
        self._session = now()
        self.append("session", f"{setting} {self._session}", {
            "id": self._session, "setting": setting, "machine": machine(), **collect(described)})

    def add(self, setting: str, spec: TrialSpec, result: TrialResult, **fields: Any) -> None:
        """Write a finished trial, with further ``fields`` of JSON values."""
        self.append("trial", _name(setting, spec), {
            "session": self._session, "setting": setting, **fields, **spec.to_json(), **result.to_json()})

    def result(self, setting: str, spec: TrialSpec) -> TrialResult | None:
        """Return the result of a trial; ``None`` where it is missing or was lost with its worker."""
        event = self.find("trial", _name(setting, spec))
        return None if event is None else TrialResult.from_json(event)

    def rows(self) -> list[Event]:
        """Return the trials, in order."""
        return [event for event in self.events if event["event"] == "trial"]

    def sessions(self) -> list[Event]:
        """Return the sessions, in order."""
        return [event for event in self.events if event["event"] == "session"]


def _name(setting: str, spec: TrialSpec) -> str:
    return f"{setting} {spec.key}"
