"""What accompanies a run: its plan as it begins, the live view, the user's listener, and early reports."""

import functools
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.config.presets import preset_notes
from qra_bo.memory.advice import Advice, embeddings_note
from qra_bo.memory.budget import format_size
from qra_bo.memory.serving import CONSUMERS, serving_note
from qra_bo.pipeline.forecast import FirstTrial, beginning, card_of, more_steps, parts_of, times, token_seconds
from qra_bo.report.html import write_report
from qra_bo.report.live import LiveView
from qra_bo.report.tables import print_line, progress_console
from qra_bo.study.events import Event, Prediction, Stage
from qra_bo.study.lines import as_line
from qra_bo.study.setting import Setting
from qra_bo.study.trial_runner import Listener
from qra_bo.utils.errors import ConfigError

log = logging.getLogger(__name__)


def announced(setting: Setting, budget: int, advice: Advice | None, console: Console) -> Listener:
    """Print advice, choices and parts of a run that begins; return the listener that times them by its first trial."""
    config = setting.config
    if advice is not None:
        print_line(console, f"Advice: {advice.sentence} {advice.offered}".rstrip())
    of_serving = serving_note(CONSUMERS[config.serve], setting.memory, setting.space)
    packed = embeddings_note(setting.memory, setting.space, budget, config.max_average_bits)
    for note in filter(None, (packed, of_serving, *preset_notes(config), more_steps(setting)[1])):
        print_line(console, note)
    parts = parts_of(setting)
    rough = times([*beginning(setting), *parts], token_seconds(setting, card_of(setting)))
    effort = "" if setting.given is not None else f", effort={config.effort.name}"
    print_line(console, f"{config.model_name} within {format_size(budget)}{effort}; estimated from the "
                        f"number of operations: {rough}")
    return FirstTrial(parts, console)


def listeners_of(config: RunConfig, folder: Path, stack: ExitStack) -> tuple[LiveView | None, list[Listener]]:
    """Return the live view, if any, and all listeners to the run's events; ``stack`` closes them."""
    own = OwnListener(config.logger.target, folder) if config.logger.target.get("_target_") else None
    if own is not None:
        stack.callback(own.close)
    view = None if config.display == "none" else LiveView(progress_console(config.display == "plain"))
    listeners: list[Listener] = [listener for listener in (view, own) if listener is not None]
    if config.oracle.trains:  # else there is no final fine-tune to wait for
        listeners.append(functools.partial(_report_early, folder, datetime.now().astimezone()))
    return view, listeners


class OwnListener:
    """Guard of the listener that ``logger._target_`` names: its first failure is logged, and ends it.

    It is any callable that takes one journal event, a mapping with the key ``event``, and is made with the keyword
    ``folder``, which exists from the first event on, and the other keys of ``logger``. A resumed run gives all its
    events again. A method ``close`` is called at the end.

    Raises:
        ConfigError: If the target can't be imported, or does not take these keys.
    """

    def __init__(self, logger: Mapping[str, Any], folder: Path) -> None:
        self._name, self._failed = logger["_target_"], False
        try:
            self._call = instantiate(dict(logger), folder=folder)
        except InstantiationException as error:
            raise ConfigError(f"logger._target_ must name a class or function that takes folder and the other keys of "
                              f"logger; got {self._name}: {error}") from error
        if not callable(self._call):
            raise ConfigError(f"logger._target_ must build a callable that takes a journal event; {self._name} built "
                              f"{type(self._call).__name__}")

    def __call__(self, event: Event) -> None:
        self._guard(self._call, as_line(event))

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


def _report_early(folder: Path, since: datetime, event: Event) -> None:
    """Write the report of a run in ``folder`` after a comparison: the final fine-tune may take hours.

    Events before ``since`` are those of earlier sessions.
    """
    if event.time >= since and (isinstance(event.record, Prediction) or event.record == Stage("confirmation", "end")):
        write_report(folder)
