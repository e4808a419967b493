"""Journal of a table: every result is written once, by kind and key, and never computed again."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import qra_bo
from bench.store import Event, Store
from bench.table1.config import TableConfig
from bench.table1.recipe import with_codes
from qra_bo.config.resume import differences, flatten
from qra_bo.study.journal import checksum
from qra_bo.study.provenance import INCOMPARABLE, changes, collect
from qra_bo.trials import TrialState
from qra_bo.utils.errors import JournalError

OWN_FIELDS = frozenset({"event", "time", "key", "run", "session", "elapsed", "crc"})
"""Fields of an event that are not of its result."""
LIMITS = ("budget", "max_average_bits")
"""Configuration keys that a table's limits replace."""


class TableJournal(Store):
    """Results of a table; the header is written or checked on construction.

    Args:
        config: Of the table.
        path: Of the file.

    Raises:
        JournalError: If the journal belongs to a table of another configuration.
    """

    def __init__(self, config: TableConfig, path: Path) -> None:
        super().__init__(path)
        self._config, self._described = config, False
        self.made = 0
        """Results that this process computed."""
        self._failed: dict[tuple[str, str], Event] = {}
        known = [event for event in self.events if event["event"] == "provenance"]
        self.provenance: Mapping[str, Any] = known[-1] if known else {}
        """Provenance of the last results."""
        if (header := self.find("header", "")) is None:
            options = config.table.model_dump(mode="json", exclude={"join"})  # folders of this machine
            self.append("header", "", {"config": self._settings(), "table1": options, "version": qra_bo.__version__,
                                       "model": config.run.model_name, "oracle": config.run.oracle.name})
        else:
            self.check_header(path, header)

    def once(self, kind: str, key: str, make: Callable[[], Mapping[str, Any]]) -> Event:
        """Return the event of a kind under a key; where there is none, ``make`` computes its fields. One that failed is
        made again by another process, and not by this one."""
        found = self.find(kind, key) or self._failed.get((kind, key))
        if found is None:
            found = self.append(kind, key, make())
            self.made += 1
            if found.get("state") == TrialState.FAILED.value:
                self._failed[kind, key] = found
        return found

    def take_over(self, folder: Path, event: Event) -> bool:
        """Write a result of the same table in another folder; ``False`` where this one has it already.

        Raises:
            JournalError: If results here and there would not compare.
        """
        kind, fields = str(event["event"]), {k: v for k, v in event.items() if k not in OWN_FIELDS}
        if kind == "provenance":
            self._add_provenance(fields, f"results of {folder.name} were made elsewhere: {{}}; seeds of a row that "
                                         "were trained here and there may differ a little")
            return False
        if kind in ("header", "warning") or self.find(kind, str(event["key"])) is not None:
            return False
        self.append(kind, str(event["key"]), fields)
        return True

    def warn(self, message: str) -> None:
        """Print and write a warning, once a table."""
        if self.find("warning", message) is None:
            self.append("warning", message, {"message": message})
            print(f"table1: {message}", file=sys.stderr)

    def check_header(self, path: Path, header: Event) -> None:
        """Refuse a journal of another table. Keys that only one release has do not count.

        Raises:
            JournalError: With the keys that differ.
        """
        before, now = header["config"], self._settings()
        both = flatten(before).keys() & flatten(now).keys()
        found = [f"{key} was {old!r} and is {new!r}" for key, old, new in differences(before, now, harmless=False)
                 if key in both and key.split(".")[0] not in LIMITS]
        if found:
            raise JournalError(f"{path} belongs to a table of another configuration: {'; '.join(found)}. Continue it "
                               "with the values it was started with, or start a new table with another out=")

    def _settings(self) -> dict[str, Any]:
        """Return the configuration; rows choose their codes and limits their scopes."""
        run = with_codes(self._config.run, None)
        return run.with_changes(memory=run.memory.with_changes(scope="peak")).to_dict()

    def describe(self, described: Mapping[str, Any]) -> None:
        """Write the provenance of an oracle, once a process, and warn of changes and of the oracle's notes.

        Raises:
            JournalError: If results before and after would not compare.
        """
        if self._described:
            return
        self._described = True
        now = collect(described)
        self._add_provenance(now, "since the last session of the table: {}; seeds of a row that were trained before "
                                  "and after may differ a little")
        for note in now.get("notes", ()):
            self.warn(note)

    def _add_provenance(self, fields: Mapping[str, Any], warning: str) -> None:
        """Write a provenance that is new, and warn of what differs from the last one."""
        key, before = checksum(fields), self.provenance
        if self.find("provenance", key) is not None:
            return
        alike = {k: fields.get(k) for k in INCOMPARABLE if agree(before.get(k), fields.get(k))}
        different = changes({**before, **alike}, fields) if before else []
        self.provenance = self.append("provenance", key, fields)
        if different:
            self.warn(warning.format("; ".join(different)))


def agree(a: Any, b: Any) -> bool:
    """Whether two descriptions are the same in what both hold."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(agree(a[key], b[key]) for key in a if key in b)
    return bool(a == b)
