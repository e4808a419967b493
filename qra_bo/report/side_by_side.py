"""Several runs: finding them, one line each, and the settings that keep their losses from being compared."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qra_bo.memory.budget import format_size
from qra_bo.report import story
from qra_bo.report.data import ReportData, load_run
from qra_bo.report.text import duration
from qra_bo.study.journal import JOURNAL_NAME, is_locked
from qra_bo.study.status import read_state
from qra_bo.utils.errors import JournalError, OutputError
from qra_bo.utils.formatting import DASH, cut, number
from qra_bo.utils.redact import printable, redact

STOPPED = ("interrupted", "failed", "died")
"""States of a run that ended early: by a signal, by an error, or killed."""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run's folder: its report data, or the reason why its journal can't be read. ``name`` is its path from the
    folder of all runs, by which their page links its own report; ``own`` what not all of them were given."""

    name: str
    folder: Path
    data: ReportData | None
    problem: str = ""
    own: str = ""

    @property
    def state(self) -> str:
        """``done`` and the like from the journal; else ``active``, how it stopped (``interrupted``, ``failed`` or
        ``died``; ``unfinished`` where that is unknown), or ``unreadable``."""
        if self.data is None:
            return "unreadable"
        if self.data.ended:
            return self.data.state
        if is_locked(self.folder):
            return "active"
        state = read_state(self.folder)
        return state if state in STOPPED else self.data.state

    @property
    def cells(self) -> tuple[str, ...]:
        """The run as text, in the order of ``COLUMNS``."""
        facts = (DASH if self.data is None else read(self.data) for read in FACTS.values())
        texts = self.name, self.state, *facts, self.own or DASH
        return tuple(printable(text.translate({9: 0, 10: 0})) for text in texts)  # a tab or line break makes cells


def find_runs(folder: Path) -> list[FoundRun]:
    """Find the runs in ``folder``, itself included, at any depth, in order of their paths. Raises ``OutputError`` if it
    is no directory."""
    if not folder.is_dir():
        raise OutputError(f"{folder} is not a folder; give the folder that holds your runs, e.g. outputs")
    def found(run: Path, data: ReportData | None, error: Exception | None = None) -> FoundRun:
        name = run.name if run == folder else run.relative_to(folder).as_posix()
        why = f"it can't be read ({error.strerror})" if isinstance(error, OSError) else str(error or "")
        return FoundRun(name, run, data, why)

    closed: list[OSError] = []
    places = [Path(root) for root, _, names in os.walk(folder, onerror=closed.append) if JOURNAL_NAME in names]
    runs = [found(Path(error.filename), None, error) for error in closed]
    for place in places:
        try:
            runs.append(found(place, load_run(place)))
        except (JournalError, OutputError, OSError) as error:  # of the system: its files can't be reached
            runs.append(found(place, None, error))
    given = {run.folder: run.data.words for run in runs if run.data is not None}
    times = Counter(word for words in given.values() for word in words if not word.startswith("out="))
    own = {at: cut(" ".join(w for w in words if 0 < times[w] < len(given))) for at, words in given.items()}
    return sorted((replace(run, own=redact(own.get(run.folder, ""))) for run in runs), key=lambda run: run.folder)


Reader = Callable[[ReportData], str]
SETTING: tuple[tuple[str, Reader], ...] = (
    ("model", lambda d: d.header.model), ("budget", lambda d: format_size(d.header.budget_bytes)),
    ("scope", lambda d: d.header.scope), ("oracle", lambda d: d.header.oracle), ("codes", lambda d: d.rounding),
    ("data or its split (seed)", lambda d: str(d.study.provenance.get("data_sha256", DASH))[:12]),
    ("steps", lambda d: str(d.header.high_steps)))
"""Settings that two runs must share for their losses to be comparable."""
FACTS: dict[str, Reader] = {**dict(SETTING[:2]),
    "bits": lambda d: DASH if d.winner is None else f"{d.average_bits(d.winner):.2f}",
    "rank": lambda d: DASH if d.winner is None else f"{sum(d.winner.ranks) / len(d.winner):.1f}",
    "untuned": lambda d: DASH if d.study.untuned is None else number(d.study.untuned.loss),
    "search loss": lambda d: DASH if d.winner_point is None else number(d.winner_point.loss),
    "final loss": lambda d: DASH if d.study.final is None else number(d.study.final.loss),
    "simple choice": lambda d: DASH if d.verdict.reference is None else d.study.name(d.verdict.reference),
    "versus it": story.versus, "time": lambda d: duration(d.wall_seconds)}
COLUMNS = ("run", "state", *FACTS, "given alone")
"""Headings of a table of runs, in the order of ``FoundRun.cells``."""


def caveats(runs: Sequence[FoundRun]) -> list[str]:
    """One sentence for each setting in which the runs differ and for each run that trained no model."""
    read = {run.name: run.data for run in runs if run.data is not None}
    return [*(f"The runs differ in {title}: their losses are not directly comparable." for title, reader in SETTING
              if len(set(map(reader, read.values()))) > 1),
            *(f"{name}: {data.proxy_label}." for name, data in read.items() if data.proxy_label)]
