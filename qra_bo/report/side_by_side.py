"""Several runs: finding them, the findings of each, and the settings that keep their losses from being compared."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qra_bo.report import story
from qra_bo.report.data import ReportData, load_run
from qra_bo.report.text import duration, size
from qra_bo.study.card import SEVERITY
from qra_bo.study.journal import JOURNAL_NAME, is_locked
from qra_bo.study.results import checks
from qra_bo.study.status import read_state
from qra_bo.utils.errors import JournalError, OutputError
from qra_bo.utils.formatting import DASH, number

STOPPED = ("interrupted", "failed", "died")
"""States of a run that ended early: by a signal, by an error, or killed."""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run's folder: its report data, or the reason why its journal can't be read."""

    folder: Path
    data: ReportData | None
    problem: str = ""

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
    def stopped(self) -> bool:
        """Whether it ended early and nothing works on it."""
        return self.state in (*STOPPED, "unfinished")

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return self.data is not None and self.data.ended


def find_runs(folder: Path) -> list[FoundRun]:
    """Find the runs in ``folder``, itself included, at any depth, in order of their paths. Raises ``OutputError`` if it
    is no directory."""
    if not folder.is_dir():
        raise OutputError(f"{folder} is not a folder; give the folder that holds your runs, e.g. outputs")
    closed: list[OSError] = []
    found = [Path(root) for root, _, names in os.walk(folder, onerror=closed.append) if JOURNAL_NAME in names]
    runs = [FoundRun(Path(error.filename), None, _problem(error)) for error in closed]
    for run in found:
        try:
            runs.append(FoundRun(run, load_run(run)))
        except (JournalError, OutputError, OSError) as error:  # of the system: its files can't be reached
            runs.append(FoundRun(run, None, _problem(error)))
    return sorted(runs, key=lambda run: run.folder)


def _problem(error: Exception) -> str:
    return f"it can't be read ({error.strerror})" if isinstance(error, OSError) else str(error)


@dataclass(frozen=True, slots=True)
class NamedRun:
    """A run with its path from the folder of all: its own report is linked by it from their page."""

    name: str
    data: ReportData


Reader = Callable[[ReportData], str]
SETTING: tuple[tuple[str, Reader], ...] = (
    ("model", lambda d: d.header.model), ("budget", lambda d: size(d.header.budget_bytes)),
    ("scope", lambda d: d.header.scope), ("oracle", lambda d: d.header.oracle), ("codes", lambda d: d.rounding),
    ("data", lambda d: str(d.study.provenance.get("data_sha256", DASH))[:12]),
    ("steps", lambda d: str(d.header.high_steps)))
"""Settings that two runs must share for their losses to be comparable."""
FOUND: tuple[tuple[str, Reader], ...] = (
    ("method", lambda d: d.header.method), ("search seed", lambda d: str(d.header.seed)),
    ("search loss", lambda d: number(d.search_loss)), ("final loss", lambda d: number(d.final_loss)),
    ("versus best simple", story.versus),
    ("state", lambda d: d.state),
    ("checks", lambda d: ", ".join(f"{n} {status}" for status, n in sorted(Counter(
        c.status for c in checks(d.study)).items(), key=lambda pair: SEVERITY.index(pair[0])))),
    ("cost (full-trial equivalents)", lambda d: number(d.equivalents, 1)), ("bits and ranks", story.allocation_line))

SWEPT: tuple[tuple[str, Reader], ...] = (
    ("budget", lambda d: size(d.header.budget_bytes)),
    ("bits", lambda d: DASH if d.winner is None else f"{d.average_bits(d.winner):.2f}"),
    ("rank", lambda d: DASH if d.winner is None else f"{sum(d.winner.ranks) / len(d.winner):.1f}"),
    ("untuned", lambda d: DASH if d.study.untuned is None else number(d.study.untuned.loss)),
    ("loss", lambda d: number(d.search_loss if d.final_loss is None else d.final_loss)),
    ("simple choice", lambda d: DASH if d.verdict.reference is None else d.study.name(d.verdict.reference)),
    ("versus it", story.versus), ("time", lambda d: duration(d.wall_seconds)))
"""Columns of a sweep's table."""


def facts(runs: Sequence[NamedRun]) -> list[tuple[str, ...]]:
    """One row for every fact: its title, then its value in each run."""
    return [(title, *(read(run.data) for run in runs)) for title, read in (*SETTING, *FOUND)]


def caveats(runs: Sequence[NamedRun]) -> list[str]:
    """One sentence for each setting in which the runs differ and for each run that trained no model."""
    differ = [title for title, read in SETTING if len({read(run.data) for run in runs}) > 1]
    return [*(f"The runs differ in {title}: their losses are not directly comparable." for title in differ),
            *(f"{run.name}: {run.data.proxy_label}." for run in runs if run.data.proxy_label)]
