"""A copy of a run's evaluations in an Optuna storage, so that ``optuna-dashboard`` shows it; a copy, and nothing more.

What can't be copied is lost to the dashboard alone: the search never waits for the storage, and goes on without it.
"""

import logging
import queue
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.space import average_bits
from qra_bo.study.cost import UNSEARCHED_STAGES
from qra_bo.study.journal import JOURNAL_NAME, read_journal
from qra_bo.study.state import Study
from qra_bo.trials import Fidelity, Trial
from qra_bo.utils.errors import MissingExtraError
from qra_bo.utils.redact import redact

log = logging.getLogger(__name__)
SQLITE = "sqlite"
"""Instead of a URL: a file beside the run's folder, which all runs of a folder share."""
SQLITE_NAME = "optuna.sqlite3"
LAST_SECONDS = 30.0
"""How long the end of a run waits for what is not copied yet."""
_END = object()


def storage_url(mirror: str, folder: Path) -> str:
    """The URL of an Optuna storage: ``mirror`` itself, or that of the file beside the run in ``folder``."""
    return f"sqlite:///{folder.absolute().parent / SQLITE_NAME}" if mirror == SQLITE else mirror


def study_name(folder: Path, header: Mapping[str, Any]) -> str:
    """Names a run in a storage: its folder and when it was begun."""
    return f"{folder.absolute().name} {str(header['time'])[:19]}"


class OptunaMirror:
    """Listens to a run: call it with every journal event, those of earlier sessions first; what is there is not copied
    again. A context manager: leaving it waits for the rest for a moment.

    Args:
        url: Of the storage, as SQLAlchemy takes it.
        folder: Of the run.

    Raises:
        MissingExtraError: If Optuna is not installed.
    """

    def __init__(self, url: str, folder: Path) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError("optuna", "optuna", "mirror=... (a copy for optuna-dashboard)") from error
        self._optuna, self._url, self._folder = optuna, url, folder
        self._events: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="qra_bo-mirror", daemon=True)
        self.failed = False

    def __enter__(self) -> "OptunaMirror":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._events.put(_END)
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            log.warning("the mirror did not take the last events within %g s; python -m qra_bo.runs mirror %s copies "
                        "them", LAST_SECONDS, self._folder)

    def __call__(self, event: Mapping[str, Any]) -> None:
        if not self.failed:
            self._events.put(event)

    def _run(self) -> None:
        """The copying thread."""
        copier = _Copier(self._optuna, self._url, self._folder)
        while (event := self._events.get()) is not _END:
            try:
                copier.take(event)
            except Exception as error:  # a database may raise anything, and none of it may reach the search
                self.failed = True
                log.warning("the mirror stops, and the run goes on: %s: %s; python -m qra_bo.runs mirror %s copies "
                            "the rest later", type(error).__name__, redact(str(error)).split("\n")[0], self._folder)
                return


def mirror_run(folder: Path, url: str) -> int:
    """Copy the run in ``folder`` from its journal; how many evaluations of it the storage holds then.

    Raises:
        JournalError: If the journal can't be read.
        MissingExtraError: If Optuna is not installed.
    """
    mirror = OptunaMirror(url, folder)
    copier = _Copier(mirror._optuna, url, folder)
    for event in read_journal(folder / JOURNAL_NAME).events:
        copier.take(event)
    return copier.copied


class _Copier:
    """Makes trials of evaluations: one of low fidelity is a pruned trial, one without a loss a failed one."""

    def __init__(self, optuna: Any, url: str, folder: Path) -> None:
        self._optuna, self._url, self._folder = optuna, url, folder
        self._study = Study()
        self._there: Any = None
        self._known: set[str] = set()
        self._waiting: list[tuple[Trial, datetime]] = []

    @property
    def copied(self) -> int:
        return len(self._known)

    def take(self, event: Mapping[str, Any]) -> None:
        """Fold in one event, and copy what can be judged now (before the calibration has ended nothing can)."""
        self._study.add(event)
        if event["event"] == "header":
            self._open(event)
        elif event["event"] == "trial":
            self._waiting.append((self._study.trials[-1], datetime.fromisoformat(event["time"])))
        if self._study.lr_scale is not None:
            for evaluation, ended in self._waiting:
                self._copy(evaluation, ended)
            self._waiting.clear()
        if event["event"] == "end":
            self._there.set_user_attr("winner", event["best"])

    def _open(self, header: Mapping[str, Any]) -> None:
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._there = self._optuna.create_study(storage=self._url, study_name=study_name(self._folder, header),
                                                direction="minimize", load_if_exists=True)
        self._known = {t.user_attrs["key"] for t in self._there.get_trials(deepcopy=False) if "key" in t.user_attrs}
        facts = {k: header[k] for k in ("model", "method", "oracle", "scope", "budget_bytes", "granularity", "seed")}
        for name, value in {**facts, "folder": str(self._folder)}.items():
            if self._there.user_attrs.get(name) != value:
                self._there.set_user_attr(name, value)

    def _copy(self, e: Trial, ended: datetime) -> None:
        r = e.spec
        if r.key in self._known or e.stage in UNSEARCHED_STAGES or r.split != "validation" \
                or r.lr_scale != self._study.lr_scale:
            return  # another objective: it has no place on the same axis
        self._known.add(r.key)
        states, low = self._optuna.trial.TrialState, e.fidelity is Fidelity.LOW
        params, numel = dict(self._choices(e)), np.array(self._study.header["unit_numel"])
        distributions = dict(self._axes()) if params else {}
        self._there.add_trial(self._optuna.trial.FrozenTrial(
            number=-1, trial_id=-1, state=states.FAIL if not e.ok else states.PRUNED if low else states.COMPLETE,
            value=e.loss, params=params, distributions=distributions, intermediate_values=dict(e.result.curve),
            datetime_start=(ended - timedelta(seconds=e.result.seconds)).replace(tzinfo=None),
            datetime_complete=ended.replace(tzinfo=None), system_attrs={},
            user_attrs={"key": r.key, "stage": e.stage, "fidelity": e.fidelity.value, "steps": r.steps,
                        "predicted_bytes": e.predicted_bytes, "measured_bytes": e.result.measured_bytes,
                        "average_rank": sum(e.allocation.ranks) / len(e.allocation), "state": e.result.state.value,
                        "average_bits": average_bits(e.bits, numel), "message": e.result.message}))

    def _choices(self, e: Trial) -> Iterator[tuple[str, Any]]:
        """Every unit's format and rank; none where a format is not the search's."""
        names = {f["name"] for f in self._study.header["formats"]}
        if set(e.allocation.formats) <= names:
            for unit, fmt, rank in zip(self._study.header["units"], e.allocation.formats, e.allocation.ranks,
                                       strict=True):
                yield from ((f"{unit} format", fmt), (f"{unit} rank", rank))

    def _axes(self) -> Iterator[tuple[str, Any]]:
        """Anchors have ranks between those of the ladder, and beyond: any integer is one."""
        header, kinds = self._study.header, self._optuna.distributions
        for unit in header["units"]:
            yield f"{unit} format", kinds.CategoricalDistribution([f["name"] for f in header["formats"]])
            yield f"{unit} rank", kinds.IntDistribution(0, 1 << 20)
