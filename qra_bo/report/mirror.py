"""Copy of a run's trials in an Optuna storage, for ``optuna-dashboard``.

The search never waits for the storage. A storage that fails costs the copy alone, not the run.
"""

import logging
import queue
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.space import average_bits
from qra_bo.study import JOURNAL_NAME, UNSEARCHED_STAGES, Study, read_journal
from qra_bo.trials import Fidelity, Trial
from qra_bo.utils.errors import MissingExtraError
from qra_bo.utils.redact import redact

log = logging.getLogger(__name__)
SQLITE = "sqlite"
"""Instead of a URL: a file beside the run's folder, which all runs of a folder share."""
SQLITE_NAME = "optuna.sqlite3"
LAST_SECONDS = 30.0
"""Longest wait for the remaining copies at the end of a run."""
MOST_RANK = 1 << 20
"""Upper end of the rank axis: uniform baselines have ranks between and beyond those of the ladder."""
_END = object()


def storage_url(mirror: str, folder: Path) -> str:
    """The URL of an Optuna storage: ``mirror`` itself, or that of the file beside the run in ``folder``."""
    return f"sqlite:///{folder.absolute().parent / SQLITE_NAME}" if mirror == SQLITE else mirror


def study_name(folder: Path, header: Mapping[str, Any]) -> str:
    """Name of a run in a storage: its folder and its start."""
    return f"{folder.absolute().name} {str(header['time'])[:19]}"


class OptunaMirror:
    """Listener that copies every new trial in a thread of its own; leaving the context waits for the rest briefly.

    Low fidelity becomes a pruned trial, no loss a failed one; ``known`` holds the keys of the trials in the storage.

    Raises:
        MissingExtraError: If Optuna is not installed.
    """

    def __init__(self, url: str, folder: Path) -> None:
        try:
            import optuna  # optional
        except ImportError as error:
            raise MissingExtraError("optuna", "optuna", "mirror=... (a copy for optuna-dashboard)") from error
        self._optuna, self._url, self._folder = optuna, url, folder
        self._study = Study()
        self._copy: Any = None
        self.known: set[str] = set()
        self._waiting: list[tuple[Trial, datetime]] = []
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
        while (event := self._events.get()) is not _END:
            try:
                self.take(event)
            except Exception as error:  # a database may raise anything; the search continues
                self.failed = True
                log.warning("the mirror stops, and the run goes on: %s: %s; python -m qra_bo.runs mirror %s copies "
                            "the rest later", type(error).__name__, redact(str(error)).split("\n")[0], self._folder)
                return

    def take(self, event: Mapping[str, Any]) -> None:
        """Fold in one event and copy the trials so far; before the end of the calibration all of them wait."""
        self._study.add(event)
        if event["event"] == "header":
            self._open(event)
        elif event["event"] == "trial":
            self._waiting.append((self._study.trials[-1], datetime.fromisoformat(event["time"])))
        elif event["event"] == "end":
            self._copy.set_user_attr("winner", event["best"])
        if self._study.lr_scale is not None:
            for trial, ended in self._waiting:
                self._add(trial, ended)
            self._waiting.clear()

    def _open(self, header: Mapping[str, Any]) -> None:
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._copy = self._optuna.create_study(storage=self._url, study_name=study_name(self._folder, header),
                                               direction="minimize", load_if_exists=True)
        self.known = {t.user_attrs["key"] for t in self._copy.get_trials(deepcopy=False) if "key" in t.user_attrs}
        facts = {k: header[k] for k in ("model", "method", "oracle", "scope", "budget_bytes", "granularity", "seed")}
        for name, value in {**facts, "folder": str(self._folder)}.items():
            if self._copy.user_attrs.get(name) != value:
                self._copy.set_user_attr(name, value)

    def _add(self, e: Trial, ended: datetime) -> None:
        r, header = e.spec, self._study.header
        if r.key in self.known or e.stage in UNSEARCHED_STAGES or r.split != "validation" \
                or r.lr_scale != self._study.lr_scale:
            return  # of another objective, which has no place on the same axis
        self.known.add(r.key)
        formats = [f["name"] for f in header["formats"]]
        kinds = {"format": self._optuna.distributions.CategoricalDistribution(formats),
                 "rank": self._optuna.distributions.IntDistribution(0, MOST_RANK)}
        params: dict[str, Any] = {}
        if set(e.allocation.formats) <= set(formats):
            for unit, fmt, rank in zip(header["units"], e.allocation.formats, e.allocation.ranks, strict=True):
                params |= {f"{unit} format": fmt, f"{unit} rank": rank}
        axes = {name: kinds[name.rpartition(" ")[2]] for name in params}
        states, low = self._optuna.trial.TrialState, e.fidelity is Fidelity.LOW
        self._copy.add_trial(self._optuna.trial.FrozenTrial(
            number=-1, trial_id=-1, state=states.FAIL if not e.ok else states.PRUNED if low else states.COMPLETE,
            value=e.loss, params=params, distributions=axes, intermediate_values=dict(e.result.curve),
            datetime_start=(ended - timedelta(seconds=e.result.seconds)).replace(tzinfo=None),
            datetime_complete=ended.replace(tzinfo=None), system_attrs={},
            user_attrs={"key": r.key, "stage": e.stage, "fidelity": e.fidelity.value, "steps": r.steps,
                        "predicted_bytes": e.predicted_bytes, "measured_bytes": e.result.measured_bytes,
                        "average_rank": sum(e.allocation.ranks) / len(e.allocation), "state": e.result.state.value,
                        "average_bits": average_bits(e.bits, np.array(header["unit_numel"])),
                        "message": e.result.message}))


def mirror_run(folder: Path, url: str) -> int:
    """Copy the run in ``folder`` from its journal; returns the number of its trials in the storage.

    Raises:
        JournalError: If the journal can't be read.
        MissingExtraError: If Optuna is not installed.
    """
    mirror = OptunaMirror(url, folder)
    for event in read_journal(folder / JOURNAL_NAME).events:
        mirror.take(event)
    return len(mirror.known)
