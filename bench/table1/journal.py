"""Journal of a table: every result is written once, by kind and key, and never computed again."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import qra_bo
from bench.table1.config import TableConfig
from bench.table1.recipe import with_codes
from qra_bo.study.journal import RESERVED, Journal, canonical
from qra_bo.study.provenance import changes, check_same_configuration, collect
from qra_bo.trials import SCHEMA_VERSION, TrialState

LIMITS = frozenset({"budget", "max_average_bits"})
"""Configuration keys that a table's limits replace."""
Event = Mapping[str, Any]


class TableJournal:
    """Results of a table; the header is written or checked on construction.

    Args:
        config: Of the table.
        journal: Open.

    Raises:
        JournalError: If the journal belongs to a table of another configuration.
    """

    def __init__(self, config: TableConfig, journal: Journal) -> None:
        self._config, self._journal = config, journal
        self._events: dict[tuple[str, str], Event] = {}
        self._described = False
        self.made = 0
        """Results that this process computed."""
        self.provenance: Event = {}
        """Provenance of the last results."""
        for event in journal.content.events:
            if event.get("state") != TrialState.FAILED.value:  # what a lost worker left is tried again
                self._take_in(event)
        header = self.find("header", "")
        if header is None:
            plain, digest = self._identity()
            self._append("header", {"schema_version": SCHEMA_VERSION, "config": plain, "config_sha256": digest,
                                    "table1": config.table.model_dump(mode="json"), "version": qra_bo.__version__,
                                    "model": config.run.model_name, "oracle": config.run.oracle.name})
        else:
            self.check_header(journal.path, header)
        for message in journal.content.warnings:
            self.warn(message)

    def find(self, kind: str, key: str) -> Event | None:
        """Return the event of ``kind`` under ``key``, or ``None``."""
        return self._events.get((kind, key))

    def once(self, kind: str, key: str, make: Callable[[], Mapping[str, Any]]) -> Event:
        """Return the event of ``kind`` under ``key``; where there is none, ``make`` computes its fields."""
        found = self.find(kind, key)
        if found is None:
            found = self._append(kind, {"key": key, **make()})
            self.made += 1
        return found

    def take_over(self, kind: str, fields: Mapping[str, Any]) -> bool:
        """Write a result of another journal of this table; ``False`` where this one has it already."""
        if self.find(kind, str(fields.get("key", ""))) is not None:
            return False
        self._append(kind, fields)
        return True

    def warn(self, message: str) -> None:
        """Print and write a warning, once a table."""
        if self.find("warning", message) is None:
            self._append("warning", {"key": message, "message": message})
            print(f"table1: {message}", file=sys.stderr)

    def check_header(self, path: Path, header: Event) -> None:
        """Refuse a journal of another table.

        Raises:
            JournalError: With the keys that differ.
        """
        check_same_configuration(path, header, *self._identity(), LIMITS)

    def _identity(self) -> tuple[dict[str, Any], str]:
        """Return the configuration, and the hash of what may not differ between sessions of a table."""
        run = self._config.run
        same = with_codes(run, None).with_changes(budget=("",), max_average_bits=None,
                                                  memory=run.memory.with_changes(scope="peak"))
        return run.to_dict(), same.config_sha256

    def describe(self, described: Mapping[str, Any]) -> None:
        """Write the provenance of an oracle, once a process, and warn of changes and of the oracle's notes.

        Raises:
            JournalError: If results before and after would not compare.
        """
        if self._described:
            return
        self._described = True
        now = json.loads(canonical(collect(described)))
        self._add_provenance(now, "since the last session of the table: {}; seeds of a row that were trained before "
                                  "and after may differ a little")
        for note in now.get("notes", ()):
            self.warn(note)

    def join_provenance(self, folder: Path, there: Mapping[str, Any]) -> None:
        """Write the provenance of another folder's results, once, and warn of differences.

        Raises:
            JournalError: If results here and there would not compare.
        """
        if self.find("provenance", canonical(there)) is None:
            self._add_provenance(there, f"results of {folder.name} were made elsewhere: {{}}; seeds of a row that were "
                                        "trained here and there may differ a little")

    def _add_provenance(self, fields: Mapping[str, Any], warning: str) -> None:
        differences = changes(self.provenance, fields) if self.provenance else []
        self._append("provenance", fields)
        if differences:
            self.warn(warning.format("; ".join(differences)))

    def _append(self, kind: str, fields: Mapping[str, Any]) -> Event:
        event = self._journal.append(kind, fields)
        self._take_in(event)
        return event

    def _take_in(self, event: Event) -> None:
        key = str(event.get("key", ""))
        if event["event"] == "provenance":
            self.provenance = event
            key = canonical({k: v for k, v in event.items() if k not in RESERVED})
        self._events[event["event"], key] = event
