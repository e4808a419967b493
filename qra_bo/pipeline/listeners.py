"""What accompanies a run: its plan as it begins, the live view, trackers, and reports before its end."""

import functools
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.config.presets import preset_notes
from qra_bo.memory.advice import Advice
from qra_bo.memory.serving import CONSUMERS, serving_note
from qra_bo.pipeline.forecast import FirstTrial, card_of, parts_of, times, token_seconds
from qra_bo.report.html import write_report
from qra_bo.report.live import LiveView
from qra_bo.report.tables import print_line
from qra_bo.report.text import size
from qra_bo.report.trackers import make_listener
from qra_bo.study import Event, Listener, Setting
from qra_bo.study.events import Stage
from qra_bo.study.state import COMPARISON
from qra_bo.utils.process import tolerant

COMPARING = (COMPARISON, "confirmation")
"""Stages after which a report can be read."""


def announced(setting: Setting, budget: int, advice: Advice | None, console: Console) -> Listener:
    """Print advice, choices and parts of a run that begins; return the listener that times the parts by its first
    trial."""
    config = setting.config
    if advice is not None:
        print_line(console, f"Advice: {advice.sentence} {advice.offer}".rstrip())
    of_serving = serving_note(CONSUMERS[config.serve], setting.memory, setting.space)
    for note in filter(None, (of_serving, *preset_notes(config))):
        print_line(console, note)
    parts = parts_of(setting)
    rough = times(parts, token_seconds(setting, card_of(setting)))
    print_line(console, f"{config.model_name} within {size(budget)}, effort={config.effort.name}; estimated from the "
                        f"number of operations: {rough}")
    return FirstTrial(parts, console)


def listeners_of(config: RunConfig, folder: Path, stack: ExitStack) -> tuple[LiveView | None, list[Listener]]:
    """Return the live view, if any, and all listeners to the run's events; ``stack`` closes them."""
    tracker = make_listener(config.logger.target, folder)
    if tracker is not None:
        stack.callback(tracker.close)
    view = stack.enter_context(live_view(config)) if config.display != "none" else None
    listeners: list[Listener] = [listener for listener in (view, tracker) if listener is not None]
    if config.oracle.trains:  # else there is no final fine-tune to wait for
        listeners.append(functools.partial(_report_early, folder, datetime.now().astimezone()))
    return view, listeners


def _report_early(folder: Path, since: datetime, event: Event) -> None:
    """Write the report of a run in ``folder`` after a comparison: the final fine-tune may take hours.

    Events before ``since`` are those of earlier sessions.
    """
    if event.record in [Stage(name, "end") for name in COMPARING] and event.time >= since:
        write_report(folder)


def live_view(config: RunConfig) -> LiveView:
    """Return the view of progress: lines, and a status below them on a terminal but for ``display=plain``."""
    return LiveView(Console(file=tolerant(sys.stderr), force_terminal=False) if config.display == "plain" else None)
