"""Listeners that the configuration names (``logger._target_``): TensorBoard, Weights & Biases, or the user's own.

A listener is any callable that takes one journal event (a mapping with the key ``event``). It is built with the keyword
``folder``, the run's folder, which exists from the first event on, and the other keys of ``logger``. A resumed run
gives all its events again. A method ``close`` is called at the end of the run.
"""

import hashlib
import importlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from qra_bo.report.live import events_since
from qra_bo.space import average_bits
from qra_bo.study.events import Confirmation, Event, Final, FinishedTrial, as_line
from qra_bo.study.state import Study, loss_of
from qra_bo.utils.errors import ConfigError, MissingExtraError, UserError

log = logging.getLogger(__name__)
PARAMETERS = ("model", "budget_text", "budget_bytes", "scope", "granularity", "method", "effort", "oracle", "seed",
              "config_sha256", "version")
"""Fields of the header that a tracker files as parameters of the run."""
NUMBERS = {"confirmation": ("confirmation", ("mean", "low", "high")), "final": ("final", ("loss", "kept_step")),
           "surrogate_check": ("surrogate", ("spearman", "spearman_good", "nll", "coverage_50", "coverage_90")),
           "measured": ("memory", ("predicted_bytes", "measured_bytes"))}
"""Group and fields that a tracker logs of each event, beside those of a trial."""


class Listener:
    """Guard of one configured listener: its first failure is logged, after which it gets no further event."""

    def __init__(self, name: str, call: Callable[[Any], object]) -> None:
        self._name, self._call, self._failed = name, call, False

    def __call__(self, event: Event) -> None:
        self._guard(self._call, event if isinstance(self._call, Tracker) else as_line(event))

    def close(self) -> None:
        """Let the listener write what it holds back."""
        self._guard(getattr(self._call, "close", lambda: None))

    def _guard(self, call: Callable[..., object], *arguments: object) -> None:
        if self._failed:
            return
        try:
            call(*arguments)
        except Exception as error:  # a tracker's server, disk or quota must not end a search
            self._failed = True
            log.warning("logger=%s failed and gets no further events; the run continues: %s: %s", self._name,
                        type(error).__name__, error)


def make_listener(logger: Mapping[str, Any], folder: Path) -> Listener | None:
    """Build the configured listener of the run in ``folder``; ``None`` where ``_target_`` is null.

    Raises:
        MissingExtraError: If the package of a built-in tracker is not installed.
        ConfigError: If the target can't be imported, or does not take these keys.
    """
    target = logger.get("_target_")
    if target is None:
        return None
    try:
        call = instantiate(dict(logger), folder=folder)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise ConfigError(f"logger._target_ must name a class or function that takes folder and the other keys of "
                          f"logger; got {target}: {error}") from error
    if not callable(call):
        raise ConfigError(f"logger._target_ must build a callable that takes a journal event; {target} built "
                          f"{type(call).__name__}")
    return Listener(str(target), call)


class Tracker(ABC):
    """Base of an experiment tracker: it gets numbers by name after every new event that adds some.

    Args:
        folder: The run's folder, which holds the tracker's files.
        born: Events before this moment (``None``: now) are of earlier sessions: folded in and not logged again.

    Raises ``MissingExtraError`` if ``module`` is not installed.
    """

    module = ""
    """The tracker's own package."""

    def __init__(self, folder: Path, born: datetime | None = None) -> None:
        try:
            self._package: Any = importlib.import_module(self.module)  # optional, and may load torch
        except ImportError as error:
            extra = self.module.rpartition(".")[2]
            raise MissingExtraError(extra, extra, f"logger={extra}") from error
        self._folder, self._study, self._step, self._begun = folder, Study(), 0, False
        self._new = events_since(born)

    def __call__(self, event: Event) -> None:
        self._study.add(event)
        new = self._new(event)
        if new and not self._begun:
            self.begin({key: getattr(self._study.header, key) for key in PARAMETERS})
            self._begun = True
        for metrics in metrics_of(self._study, event):
            self._step += 1
            if new:
                self.log(metrics, self._step)

    def close(self) -> None:
        if self._begun:
            self.finish()

    @abstractmethod
    def begin(self, parameters: Mapping[str, Any]) -> None:
        """Begin or continue the run with its parameters."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers; ``step`` counts the records of the run, those of earlier sessions included."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is held back."""


class TensorBoard(Tracker):
    """Event files in ``tensorboard`` below the run's folder; ``tensorboard --logdir outputs`` shows all runs."""

    module = "torch.utils.tensorboard"

    def begin(self, parameters: Mapping[str, Any]) -> None:
        self._writer = self._package.SummaryWriter(str(self._folder / "tensorboard"))
        self._writer.add_text("parameters", "\n".join(f"- {k}: {v}" for k, v in parameters.items()))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class Wandb(Tracker):
    """Weights & Biases: offline files below the run's folder unless WANDB_MODE is set, filed under ``project``.

    The run's id follows from its folder, so that a resumed run stays one run. No symbolic links stay in that folder,
    which would be refused with them (``check_run_folder``).
    """

    module = "wandb"

    def __init__(self, folder: Path, project: str, born: datetime | None = None) -> None:
        super().__init__(folder, born)
        self._project = project

    def begin(self, parameters: Mapping[str, Any]) -> None:
        name = hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:16]
        self._run = self._package.init(
            project=self._project, name=self._folder.name, id=name, resume="allow", config=dict(parameters),
            dir=str(self._folder), mode=os.environ.get("WANDB_MODE", "offline"),
            settings=self._package.Settings(console="off", silent=True, symlink=False))
        for path in (self._folder / "wandb").rglob("*"):
            if path.is_symlink():  # wandb's service links to its log, whatever the setting
                path.unlink()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


def metrics_of(study: Study, event: Event) -> list[dict[str, float]]:
    """Records of numbers that one event adds, by name; ``study`` has the event folded in."""
    record = event.record
    if not isinstance(record, FinishedTrial):
        curve = [{"final/step": float(step), "final/validation_loss": float(loss)}
                 for step, loss in (record.curve if isinstance(record, Final) else ())]
        if isinstance(record, Confirmation) and not record.train_seeds:  # without a comparison there is no difference
            return []
        group, names = NUMBERS.get(event.kind, ("", ()))
        own = {f"{group}/{name}": float(getattr(record, name)) for name in names if getattr(record, name) is not None}
        return [*curve, own] if own else curve
    e, best, uniform = study.trials[-1], study.incumbent, study.best_uniform
    found = {"trial/loss": e.loss, "trial/seconds": e.result.seconds, "trial/predicted_bytes": e.predicted_bytes,
             "trial/mean_bits": average_bits(e.bits, np.array(study.header.unit_numel)),
             "trial/mean_rank": sum(e.allocation.ranks) / len(e.allocation),
             "search/cost_equivalents": study.search_cost.tokens / study.header.full_trial_tokens,
             "search/best_loss": None if best is None else loss_of(best),
             "search/best_uniform_loss": None if uniform is None else loss_of(uniform),
             "search/difference": None if best is None or uniform is None else loss_of(best) - loss_of(uniform),
             "search/failures": sum(not x.ok for x in study.trials)}
    return [{name: float(value) for name, value in found.items() if value is not None}]
